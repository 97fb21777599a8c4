import test from 'ava'
import { missingForKafka } from '../../scripts/stack/kafka-jars.ts'

/**
 * A test that kills a broker of its own, which takes Java and Maven. On a machine that has only Docker it is counted and
 * named as skipped: the servers of the run are everybody's and must not be killed.
 */
export const testOwnKafka = missingForKafka() === undefined ? test : test.skip

/** The same for a file whose tests must not run at the same time. */
export const testOwnKafkaInTurn = missingForKafka() === undefined ? test.serial : test.serial.skip
