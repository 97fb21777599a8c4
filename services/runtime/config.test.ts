import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { spawnSync } from 'node:child_process'
import test from 'ava'

import { ConfigError, readConfig } from './config.ts'

const least = { DATABASE_URL: 'postgres://me@db:5432/mine', KAFKA_BROKERS: 'one:9092' }

function folder(t: { teardown: (end: () => void) => void }): string {
  const made = mkdtempSync(join(tmpdir(), 'config-'))
  t.teardown(() => rmSync(made, { recursive: true, force: true }))
  return made
}

test('two addresses are enough, everything else has the default that the documentation names', (t) => {
  const { holder, ...config } = readConfig(least)
  t.regex(holder, /^.+:\d+:[0-9a-z]+$/)
  t.like(config, {
    databaseUrl: 'postgres://me@db:5432/mine', kafkaBrokers: ['one:9092'], topic: 'db.informix.delta', source: 'INFORMIX',
    destination: 'POSTGRESQL', sourceTimeZone: 'UTC', clockTolerance: 300_000, maxBody: 256 * 1_048_576, autoCreate: true,
    host: '127.0.0.1', port: 8080, logLevel: 'info',
  })
  t.true(Object.isFrozen(readConfig(least)))
})

test('all faults are told at once, each with the form that is expected', (t) => {
  const error = t.throws(() => readConfig({
    KAFKA_BROKERS: 'nothing', PORT: 'http', CLOCK_TOLERANCE: '5 minutes', AUTO_CREATE: 'maybe', SOURCE_TZ: 'Mars/Base',
    MAX_BODY: '1TB', LOG_LEVEL: 'loud', TOPIC: 'a topic',
  }), { instanceOf: ConfigError })
  const told = error.faults.map((fault) => /^\w+/.exec(fault)?.[0])
  t.deepEqual(told.sort(), ['AUTO_CREATE', 'CLOCK_TOLERANCE', 'DATABASE_URL', 'KAFKA_BROKERS', 'LOG_LEVEL', 'MAX_BODY', 'PORT', 'SOURCE_TZ', 'TOPIC'])
  t.regex(error.message, /DATABASE_URL is missing: expected an address such as postgres:/)
  t.regex(error.message, /PORT="http" is not a port from 0 to 65535/)
})

test('a password in a faulty address is not shown', (t) => {
  const error = t.throws(() => readConfig({ ...least, DATABASE_URL: 'mysql://me:secret@db/mine' }), { instanceOf: ConfigError })
  t.notRegex(error.message, /secret/)
})

test('NAME_FILE gives a secret from a file, and both at once are a fault', (t) => {
  const file = join(folder(t), 'url')
  writeFileSync(file, 'postgres://me:secret@db:5432/mine\n')
  const { KAFKA_BROKERS } = least
  t.is(readConfig({ KAFKA_BROKERS, DATABASE_URL_FILE: file }).databaseUrl, 'postgres://me:secret@db:5432/mine')
  t.throws(() => readConfig({ ...least, DATABASE_URL_FILE: file }), { message: /DATABASE_URL and DATABASE_URL_FILE are both set/ })
  t.throws(() => readConfig({ KAFKA_BROKERS, DATABASE_URL_FILE: `${file}.missing` }), { message: /DATABASE_URL_FILE=.*cannot be read/ })
  t.is(readConfig({ ...least, DATABASE_URL_FILE: '' }).databaseUrl, least.DATABASE_URL)
})

test('sizes and durations are bytes and milliseconds, and a body that no budget could take is a fault', (t) => {
  t.like(readConfig({ ...least, MAX_BODY: '2MB', BODY_BUDGET: '1GB', CLOCK_TOLERANCE: '250ms' }), {
    maxBody: 2 * 1_048_576, bodyBudget: 1_024 * 1_048_576, clockTolerance: 250,
  })
  t.throws(() => readConfig({ ...least, MAX_BODY: '2MB', BODY_BUDGET: '1MB' }), { message: /BODY_BUDGET is smaller than MAX_BODY/ })
})

test('.env of the working directory lies beneath the environment', (t) => {
  const cwd = folder(t)
  writeFileSync(join(cwd, '.env'), 'DATABASE_URL=postgres://me@from-file:5432/mine\nTOPIC=from.file\n')
  const script = `
    const { processEnvironment, readConfig } = await import(${JSON.stringify(join(import.meta.dirname, 'config.ts'))})
    const { databaseUrl, topic } = readConfig(processEnvironment())
    console.log(JSON.stringify({ databaseUrl, topic }))`
  const run = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    cwd, encoding: 'utf8', env: { KAFKA_BROKERS: 'one:9092', TOPIC: 'from.environment' },
  })
  t.deepEqual(JSON.parse(run.stdout), { databaseUrl: 'postgres://me@from-file:5432/mine', topic: 'from.environment' })
})
