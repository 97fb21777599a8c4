import type { Config } from '../runtime/config.ts'
import type { Log } from '../runtime/log.ts'
import { openSlot } from '../runtime/slot.ts'
import { type Channel, tellLoop } from './loop.ts'
import { addressesOf, openMail } from './mail.ts'
import { openWebhook } from './webhook.ts'

/** A timer of Node takes 24 days at most, and less than a second would ask the database for nothing. */
const SHORTEST = 1_000
const LONGEST = 86_400_000

/** A connection that does not end by itself is left to the end of the process. */
const PATIENCE = 1_000

/** The channels that the configuration names; none where it names none. */
export function channelsOf(config: Config): Channel[] {
  const to = addressesOf(config.errorRecipients)
  return [
    ...(config.noticeWebhookUrl === undefined ? [] : [openWebhook(config.noticeWebhookUrl)]),
    ...(config.noticeSmtpUrl === undefined || to.length === 0 ? [] : [openMail({ url: config.noticeSmtpUrl, from: config.noticeFrom, to })]),
  ]
}

/**
 * Tells the failures of one database until the signal, beside the relay, of which each database has one. Without a channel
 * it opens nothing and resolves at once. Each channel has a loop and a connection of its own, so one that hangs delays no other.
 */
export async function runNotices({ config, log, signal }: { config: Config; log: Log; signal: AbortSignal }): Promise<void> {
  const channels = channelsOf(config)
  if (config.noticeSmtpUrl !== undefined && !channels.some(({ name }) => name === 'mail')) {
    log.warn('NOTICE_SMTP_URL is set, and ERROR_RECIPIENTS has no address of mail: no mail is sent')
  }
  if (channels.length === 0) return
  const everyMs = Math.min(Math.max(config.noticeEvery, SHORTEST), LONGEST)
  log.info({ channels: channels.map(({ name, to }) => `${name}: ${to}`), everyMs }, 'failures are told')
  await Promise.all(channels.map(async (channel) => {
    const slot = openSlot({ url: config.databaseUrl, name: `notices ${channel.name}` })
    await tellLoop({ channel, slot, holder: config.holder, everyMs, signal, log })
    const late = Promise.withResolvers<void>()
    const timer = setTimeout(late.resolve, PATIENCE)
    await Promise.race([slot.close(), late.promise])
    clearTimeout(timer)
  }))
}
