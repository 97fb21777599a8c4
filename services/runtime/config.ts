import { existsSync, readFileSync } from 'node:fs'
import { hostname } from 'node:os'

/** Everything a process can be told from outside. Durations are milliseconds, sizes bytes. */
export type Config = Readonly<{
  databaseUrl: string
  /** Where changes are applied; undefined: in the same database. */
  targetDatabaseUrl: string | undefined
  kafkaBrokers: readonly string[]
  topic: string
  topicPartitions: number
  source: string
  destination: string
  sourceTimeZone: string
  clockTolerance: number
  defaultSchema: string | undefined
  autoCreate: boolean
  consumerGroup: string
  /** Attempts after the first, before a change is given up. */
  maxRetries: number
  /** Before the first retry; each further one waits twice as long. */
  retryBackoff: number
  errorTopic: string
  /** Who is to hear of a failure: text in the error record; addresses of mail where NOTICE_SMTP_URL is set. */
  errorRecipients: readonly string[]
  noticeWebhookUrl: string | undefined
  noticeSmtpUrl: string | undefined
  noticeFrom: string
  noticeEvery: number
  /** How long the traces of a change are kept: posts that were seen, outcomes, tombstones, logs. 0: for ever. */
  horizon: number
  maxBody: number
  bodyBudget: number
  host: string
  port: number
  logLevel: string
  shutdownTimeout: number
  holder: string
}>

type Environment = Readonly<Record<string, string | undefined>>

/** All that is wrong with the environment, at once. Exit code 2. */
export class ConfigError extends Error {
  readonly code = 'CONFIG_INVALID'
  readonly remedy = 'set the variables named above in the environment or in .env; npm run up starts servers of its own and needs none'
  readonly faults: readonly string[]

  constructor(faults: readonly string[]) {
    super(`the configuration has ${faults.length} fault${faults.length === 1 ? '' : 's'}:\n${faults.map((fault) => `  ${fault}`).join('\n')}`)
    this.faults = faults
  }
}

/**
 * The environment of this process with `.env` of the working directory beneath it.
 *
 * This is the only place that reads process.env; what is set there wins over the file.
 */
export function processEnvironment(): Environment {
  if (existsSync('.env')) process.loadEnvFile('.env')
  return process.env
}

/**
 * Reads the whole configuration and reports every fault together.
 *
 * NAME_FILE names a file whose content is the value of NAME (for secrets); both set is a fault.
 */
export function readConfig(environment: Environment): Config {
  const faults: string[] = []

  function raw(name: string): string | undefined {
    const direct = environment[name]
    const file = environment[`${name}_FILE`]
    if (file === undefined || file === '') return direct === '' ? undefined : direct
    if (direct !== undefined && direct !== '') {
      faults.push(`${name} and ${name}_FILE are both set: keep one`)
      return undefined
    }
    try {
      return readFileSync(file, 'utf8').trim()
    } catch (error) {
      faults.push(`${name}_FILE=${JSON.stringify(file)} cannot be read: ${error instanceof Error ? error.message : String(error)}`)
      return undefined
    }
  }

  /** `parse` returns undefined for what it does not accept; without `fallback` the variable must be there. */
  function read<T>(name: string, parse: (text: string) => T | undefined, expected: string, fallback?: T | typeof NONE): T {
    const text = raw(name)
    if (text === undefined) {
      if (fallback === NONE) return undefined as T // the caller's T says so
      if (fallback === undefined) faults.push(`${name} is missing: expected ${expected}`)
      return fallback as T // never used when undefined: the faults are thrown below
    }
    const value = parse(text)
    if (value === undefined) {
      const shown = /URL|PASSWORD|SECRET/.test(name) ? '(not shown)' : JSON.stringify(text)
      faults.push(`${name}=${shown} is not ${expected}`)
      return fallback as T
    }
    return value
  }

  const maxBody = read('MAX_BODY', size, 'a size up to 256MB, such as 64MB', 256 << 20)
  const config = {
    databaseUrl: read('DATABASE_URL', postgresUrl, 'an address such as postgres://user:password@host:5432/database'),
    kafkaBrokers: read('KAFKA_BROKERS', brokers, 'host:port, several separated by commas'),
    targetDatabaseUrl: read<string | undefined>('TARGET_DATABASE_URL', postgresUrl, 'an address such as postgres://user:password@host:5432/database', NONE),
    topic: read('TOPIC', topicName, 'a topic name of letters, digits, dot, _ and -', 'db.informix.delta'),
    topicPartitions: read('TOPIC_PARTITIONS', integer(1, 1_000), 'a whole number from 1 to 1000', 12),
    source: read('SOURCE', word, 'a word such as INFORMIX', 'INFORMIX'),
    destination: read('DESTINATION', word, 'a word such as POSTGRESQL', 'POSTGRESQL'),
    sourceTimeZone: read('SOURCE_TZ', timeZone, 'a time zone such as America/New_York or UTC', 'UTC'),
    clockTolerance: read('CLOCK_TOLERANCE', duration, 'a duration such as 5m, 30s or 250ms', 300_000),
    defaultSchema: raw('DEFAULT_SCHEMA'),
    autoCreate: read('AUTO_CREATE', onOff, 'on or off', true),
    consumerGroup: read('CONSUMER_GROUP', topicName, 'a name of letters, digits, dot, _ and -', 'deltapost'),
    maxRetries: read('MAX_RETRIES', integer(0, 100), 'a whole number from 0 to 100', 3),
    retryBackoff: read('RETRY_BACKOFF_MS', integer(1, 3_600_000), 'milliseconds, a whole number from 1 to 3600000', 1_000),
    errorTopic: read('ERROR_TOPIC', topicName, 'a topic name of letters, digits, dot, _ and -', 'db.postgres.error'),
    errorRecipients: read('ERROR_RECIPIENTS', texts, 'a JSON array of texts such as ["admin@abc.com"]', ['admin@abc.com']),
    noticeWebhookUrl: read<string | undefined>('NOTICE_WEBHOOK_URL', httpUrl, 'an address such as https://host/path', NONE),
    noticeSmtpUrl: read<string | undefined>('NOTICE_SMTP_URL', smtpUrl, 'an address such as smtp://user:password@host:587', NONE),
    noticeFrom: read('NOTICE_FROM', word, 'an address of mail', 'deltapost@localhost'),
    noticeEvery: read('NOTICE_EVERY', duration, 'a duration such as 1m', 60_000),
    horizon: read('HORIZON', duration, 'a duration such as 30d, or 0s for ever', 0),
    maxBody,
    bodyBudget: read('BODY_BUDGET', size, 'a size, at least that of MAX_BODY', Math.max(maxBody ?? 0, 256 << 20)),
    host: read('HOST', word, 'an address to listen on, such as 0.0.0.0', '127.0.0.1'),
    port: read('PORT', integer(0, 65_535), 'a port from 0 to 65535', 8080),
    logLevel: read('LOG_LEVEL', level, 'trace, debug, info, warn, error or silent', 'info'),
    shutdownTimeout: read('SHUTDOWN_TIMEOUT', duration, 'a duration such as 10s', 10_000),
    holder: `${hostname()}:${process.pid}:${Date.now().toString(36)}`,
  }
  if (config.maxBody > 256 << 20) faults.push('MAX_BODY is above 256MB: a body becomes a string of V8, which ends near 512 MB')
  if (config.bodyBudget < config.maxBody) faults.push('BODY_BUDGET is smaller than MAX_BODY: no body of that size could ever be taken')
  if (faults.length > 0) throw new ConfigError(faults)
  return Object.freeze(config)
}

/** A setting that may be missing. */
const NONE = Symbol('none')

function word(text: string): string | undefined {
  return /^\S+$/.test(text) ? text : undefined
}

function topicName(text: string): string | undefined {
  return /^[A-Za-z0-9._-]{1,249}$/.test(text) && text !== '.' && text !== '..' ? text : undefined
}

function postgresUrl(text: string): string | undefined {
  return URL.canParse(text) && /^postgres(ql)?:$/.test(new URL(text).protocol) ? text : undefined
}

function httpUrl(text: string): string | undefined {
  return URL.canParse(text) && /^https?:$/.test(new URL(text).protocol) ? text : undefined
}

function smtpUrl(text: string): string | undefined {
  return URL.canParse(text) && /^smtps?:$/.test(new URL(text).protocol) ? text : undefined
}

function texts(text: string): readonly string[] | undefined {
  try {
    const list: unknown = JSON.parse(text)
    return Array.isArray(list) && list.every((one) => typeof one === 'string') ? list : undefined
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

function brokers(text: string): readonly string[] | undefined {
  const list = text.split(',').map((broker) => broker.trim())
  return list.every((broker) => /^\S+:\d{1,5}$/.test(broker)) ? list : undefined
}

function timeZone(text: string): string | undefined {
  try {
    return new Intl.DateTimeFormat('en', { timeZone: text }).resolvedOptions().timeZone
  } catch (error) {
    if (error instanceof RangeError) return undefined
    throw error
  }
}

function duration(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(text)
  if (match === null) return undefined
  return Number(match[1]) * { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }[match[2] as 'ms' | 's' | 'm' | 'h' | 'd']
}

// V8's strings end near 512 MB and a Postgres field at 1 GB, so 256 MB is the most a body may have.
function size(text: string): number | undefined {
  const match = /^(\d+)(B|KB|MB|GB)?$/i.exec(text)
  if (match === null) return undefined
  const unit = (match[2] ?? 'B').toUpperCase() as 'B' | 'KB' | 'MB' | 'GB'
  const bytes = Number(match[1]) * { B: 1, KB: 1 << 10, MB: 1 << 20, GB: 1 << 30 }[unit]
  return bytes > 0 && bytes <= 4 * (1 << 30) ? bytes : undefined
}

function onOff(text: string): boolean | undefined {
  if (/^(on|true|yes|1)$/i.test(text)) return true
  return /^(off|false|no|0)$/i.test(text) ? false : undefined
}

function level(text: string): string | undefined {
  return ['trace', 'debug', 'info', 'warn', 'error', 'silent'].includes(text) ? text : undefined
}

function integer(least: number, most: number): (text: string) => number | undefined {
  return (text) => {
    const value = Number(text)
    return /^\d+$/.test(text) && value >= least && value <= most ? value : undefined
  }
}
