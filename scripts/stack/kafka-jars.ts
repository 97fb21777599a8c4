import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

import { cacheFolder, fetchOnce, missingForFetch } from './maven.ts'

export const KAFKA_VERSION = '4.3.1'
const OLDEST_JAVA = 17
const POM = join(import.meta.dirname, 'kafka-jars.xml')

/** Where the jars are kept between runs and clones. */
export function jarFolder(): string {
  return cacheFolder(`kafka-${KAFKA_VERSION}`)
}

/** The `java` to run: JAVA_HOME's, else the one on PATH. */
export function javaProgram(): string {
  const home = process.env['JAVA_HOME'] ?? ''
  return home === '' ? 'java' : join(home, 'bin', 'java')
}

/** What this machine lacks to run the broker, in words, or undefined. Jars that are there need no Maven. */
export function missingForKafka(): string | undefined {
  return missingForJava() ?? missingForFetch(jarFolder(), "Kafka's jars")
}

/** What is wrong with this machine's Java, in words, or undefined. */
export function missingForJava(): string | undefined {
  const java = spawnSync(javaProgram(), ['-version'], { encoding: 'utf8' })
  if (java.status !== 0) return `no Java (${OLDEST_JAVA} or newer is needed)`
  const version = Number(/version "(?:1\.)?(\d+)/.exec(java.stderr)?.[1])
  return version < OLDEST_JAVA ? `Java is ${version} (${OLDEST_JAVA} or newer is needed)` : undefined
}

/** The folder with Kafka's jars, fetched with Maven the first time. */
export async function kafkaJars(log: (line: string) => void): Promise<string> {
  return fetchOnce({
    folder: jarFolder(), what: `Apache Kafka ${KAFKA_VERSION}`, size: '45 MB', pom: POM, goal: 'copy-dependencies', code: 'STACK_KAFKA', log,
  })
}
