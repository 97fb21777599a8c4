import { execFile, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

import { DeltapostError } from '../../outbox/errors.ts'

export const KAFKA_VERSION = '4.3.1'
const OLDEST_JAVA = 17
const POM = join(import.meta.dirname, 'kafka-jars.xml')

/** Where the jars are kept between runs and clones. */
export function jarFolder(): string {
  const cache = process.env['XDG_CACHE_HOME'] ?? ''
  return join(cache === '' ? join(homedir(), '.cache') : cache, 'deltapost', `kafka-${KAFKA_VERSION}`)
}

/** The `java` to run: JAVA_HOME's, else the one on PATH. */
export function javaProgram(): string {
  const home = process.env['JAVA_HOME'] ?? ''
  return home === '' ? 'java' : join(home, 'bin', 'java')
}

/** What this machine lacks to run the broker, in words, or undefined. Jars that are there need no Maven. */
export function missingForKafka(): string | undefined {
  const java = spawnSync(javaProgram(), ['-version'], { encoding: 'utf8' })
  if (java.status !== 0) return `no Java (${OLDEST_JAVA} or newer is needed)`
  const version = Number(/version "(?:1\.)?(\d+)/.exec(java.stderr)?.[1])
  if (version < OLDEST_JAVA) return `Java is ${version} (${OLDEST_JAVA} or newer is needed)`
  if (existsSync(jarFolder())) return undefined
  if (spawnSync('mvn', ['-v'], { encoding: 'utf8' }).status !== 0) return `no Maven (mvn) to fetch Kafka's jars into ${jarFolder()}`
  return undefined
}

/**
 * The folder with Kafka's jars, fetched with Maven the first time (45 MB).
 *
 * They are fetched beside their place and renamed, so that a download that was cut off is not taken for a good one.
 */
export async function kafkaJars(log: (line: string) => void): Promise<string> {
  const folder = jarFolder()
  if (existsSync(folder)) return folder
  log(`fetching Apache Kafka ${KAFKA_VERSION} with Maven into ${folder} (45 MB, once)`)
  const partial = `${folder}.partial-${process.pid}`
  mkdirSync(partial, { recursive: true })
  try {
    await promisify(execFile)('mvn', ['-B', '-q', '-f', POM, 'dependency:copy-dependencies', `-DoutputDirectory=${partial}`])
    renameSync(partial, folder)
  } catch (error) {
    rmSync(partial, { recursive: true, force: true })
    // Another run may have been quicker; its folder is as good.
    if (existsSync(folder)) return folder
    const told = error instanceof Error && 'stdout' in error ? `${error.message}\n${String(error.stdout)}` : String(error)
    throw new DeltapostError('STACK_KAFKA', `Kafka's jars could not be fetched: ${told}`, `mvn -f ${POM} dependency:copy-dependencies`, {
      cause: error,
    })
  }
  return folder
}
