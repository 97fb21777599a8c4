import { randomUUID } from 'node:crypto'
import type { Command } from 'commander'

import { DeltapostError } from '../../outbox/errors.ts'
import { channelsOf } from '../../services/notices/main.ts'
import { testNotice } from '../../services/notices/message.ts'
import { readConfig } from '../../services/runtime/config.ts'
import { environmentOfRunning, withUnused } from './environment.ts'
import { say } from './print.ts'

export function addNotice(program: Command): void {
  const notice = program.command('notice').description('who is told of failures, by webhook or mail')
  notice.command('test')
    .description('send one test notice to all that is configured, and say what happened')
    .addHelpText('after', `
Channels: NOTICE_WEBHOOK_URL, and NOTICE_SMTP_URL for those of ERROR_RECIPIENTS that are addresses of mail.
Exits with 1 when one of them was not told.

Example:
  NOTICE_WEBHOOK_URL=https://host/path deltapost notice test`)
    .action(test)
}

async function test(): Promise<void> {
  const config = readConfig(withUnused(environmentOfRunning(), ['DATABASE_URL', 'KAFKA_BROKERS']))
  const channels = channelsOf(config)
  if (config.noticeSmtpUrl !== undefined && !channels.some(({ name }) => name === 'mail')) {
    throw new DeltapostError('NOTICE_NOBODY', 'NOTICE_SMTP_URL is set, and ERROR_RECIPIENTS has no address of mail', `ERROR_RECIPIENTS='["you@your.host"]'`)
  }
  if (channels.length === 0) {
    throw new DeltapostError('NOTICE_OFF', 'failures are told to nobody: no channel is configured', 'set NOTICE_WEBHOOK_URL or NOTICE_SMTP_URL in the environment or .env')
  }
  const notice = testNotice(`test.${randomUUID()}`)
  const ends = await Promise.allSettled(channels.map((channel) => channel.tell(notice, new AbortController().signal)))
  for (const [at, end] of ends.entries()) {
    const channel = channels[at]
    say(`${channel?.name} ${channel?.to}: ${end.status === 'fulfilled' ? 'told' : 'not told'}`)
  }
  const failed = ends.find((end) => end.status === 'rejected')
  if (failed !== undefined) throw failed.reason
}
