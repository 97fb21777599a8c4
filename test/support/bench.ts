import { rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { Bench } from '../../scripts/bench/place.ts'
import { processEnvironment } from '../../services/runtime/config.ts'
import { given } from './given.ts'

/** A small bench on the tests' servers, and what removes the log of its roles. */
export function testBench(): { benchOf: () => Bench; drop: () => void } {
  const logFile = join(tmpdir(), `deltapost-bench-test-${process.pid}.log`)
  return {
    benchOf: () => ({
      stack: { databaseUrl: given('DELTAPOST_TEST_DATABASE_URL'), kafkaBrokers: given('DELTAPOST_TEST_KAFKA') },
      environment: processEnvironment(), signal: new AbortController().signal, kafkaData: undefined,
      options: { seconds: 1, rate: 100, events: 400, backlog: 0, repeats: 1 },
      logFile, tell: () => undefined,
    }),
    drop: () => rmSync(logFile, { force: true }),
  }
}
