import { claimChannel, closeFailed, closeTold, foldNotices, giveChannelBack } from '../../outbox/notice.ts'
import type { ChannelName } from '../../outbox/notice.ts'
import type { Log } from '../runtime/log.ts'
import type { Slot } from '../runtime/slot.ts'
import { noticeOf } from './message.ts'
import type { Notice } from './message.ts'

/** A way to tell; `to` says whom, without a secret. `tell` rejects when it did not arrive, at the latest after 30 s. */
export type Channel = { name: ChannelName; to: string; tell: (notice: Notice, signal: AbortSignal) => Promise<void> }

export type TellParts = { channel: Channel; slot: Slot; holder: string; everyMs: number; signal: AbortSignal; log: Log }

/**
 * Tells what failed, every so often, until the signal, which ends it at once: what was being told is told again by
 * whoever takes the channel after the lease.
 *
 * A notice is a hint. Nothing waits for it, and nothing that fails here ends anything.
 */
export async function tellLoop(parts: TellParts): Promise<void> {
  const { channel, everyMs, signal, log } = parts
  const aborted = Promise.withResolvers<void>()
  signal.addEventListener('abort', () => aborted.resolve(), { once: true })
  let failing = false

  async function turn(): Promise<void> {
    try {
      await tellOnce(parts)
      if (failing) log.info({ channel: channel.name }, 'looking for notices works again')
      failing = false
    } catch (error) {
      // Said once: the database being away is told often enough by those who need it.
      if (!failing && !signal.aborted) log.warn({ channel: channel.name, error }, 'looking for notices: failing, trying on')
      failing = true
    }
  }

  while (!signal.aborted) {
    await Promise.race([turn(), aborted.promise])
    if (!signal.aborted) await rest(everyMs, aborted.promise)
  }
}

/** Takes the channel and tells one batch, where there is one. */
async function tellOnce({ channel, slot, holder, everyMs, signal, log }: TellParts): Promise<void> {
  const claim = await slot.run((sql) => claimChannel(sql, channel.name, holder))
  if (claim === undefined) return
  const batch = await slot.run((sql) => foldNotices(sql, claim))
  if (batch === undefined) return slot.run((sql) => giveChannelBack(sql, claim))
  const { id, counts } = batch
  try {
    await channel.tell(noticeOf(batch), signal)
  } catch (error) {
    if (signal.aborted) return
    const { tries, dropped } = await slot.run((sql) => closeFailed(sql, claim, everyMs)) ?? { tries: 0, dropped: false }
    if (dropped) log.error({ channel: channel.name, id, ...counts, tries, error }, 'notice dropped; the failures are in auditlog.audit_log')
    else log.warn({ channel: channel.name, id, ...counts, tries, error }, 'notice not told, tried again')
    return
  }
  if (await slot.run((sql) => closeTold(sql, claim, everyMs))) log.info({ channel: channel.name, id, ...counts }, 'notice told')
  else log.warn({ channel: channel.name, id }, 'notice told too late; another process tells it again')
}

async function rest(ms: number, ended: Promise<void>): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  await Promise.race([promise, ended])
  clearTimeout(timer)
}
