import kafkajs, { type Admin } from 'kafkajs'

import type { Config } from '../../services/runtime/config.ts'
import { KAFKA_RETRY, openKafka } from '../../services/runtime/kafka.ts'
import { openLog } from '../../services/runtime/log.ts'
import type { Check } from './checks.ts'
import { duration, size } from './print.ts'

/** The broker, the topic, and how large a record may be. */
export async function checkKafka(config: Config): Promise<Check[]> {
  const admin = openKafka(config.kafkaBrokers, openLog('doctor', 'silent')).admin({ retry: KAFKA_RETRY })
  try {
    await admin.connect()
    const { brokers } = await admin.describeCluster()
    return [
      { name: 'Kafka', result: 'ok', told: `${brokers.length} broker${brokers.length === 1 ? '' : 's'} at ${config.kafkaBrokers.join(', ')}` },
      ...await checkTopic(admin, config),
    ]
  } catch (error) {
    if (!(error instanceof Error)) throw error
    return [{
      name: 'Kafka', result: 'fail', told: `no answer from ${config.kafkaBrokers.join(', ')}: ${error.message}`,
      fix: 'start the broker, or correct KAFKA_BROKERS (npm run up starts one of its own)',
    }]
  } finally {
    await admin.disconnect()
  }
}

async function checkTopic(admin: Admin, config: Config): Promise<Check[]> {
  const { topic } = config
  if (!(await admin.listTopics()).includes(topic)) {
    return [{ name: 'topic', result: 'warning', told: `${topic} is not there yet`, fix: 'nothing: relay and consumer create it when they start, if they may' }]
  }
  const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
  const partitions = topics[0]?.partitions ?? []
  const leaderless = partitions.filter(({ leader }) => leader < 0).length
  return [
    leaderless === 0
      ? { name: 'topic', result: 'ok', told: `${topic} has ${partitions.length} partitions` }
      : { name: 'topic', result: 'fail', told: `${leaderless} partitions of ${topic} have no leader`, fix: 'start the brokers that hold them' },
    await checkRecordLimit(admin, config),
    await checkRetention(admin, config),
  ]
}

/** What the topic takes in one record. A larger change travels in chunks, so no limit is too small for MAX_BODY. */
async function checkRecordLimit(admin: Admin, { topic }: Config): Promise<Check> {
  const { resources } = await admin.describeConfigs({
    includeSynonyms: false,
    resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name: topic, configNames: ['max.message.bytes'] }],
  })
  const limit = Number(resources[0]?.configEntries.find(({ configName }) => configName === 'max.message.bytes')?.configValue ?? 0)
  return { name: 'record limit', result: 'ok', told: `${topic} takes records up to ${size(limit)}; a larger change travels in chunks` }
}

/** A record that is read again after its outcome and its tombstone were pruned would be applied again. */
async function checkRetention(admin: Admin, { topic, horizon }: Config): Promise<Check> {
  const { resources } = await admin.describeConfigs({
    includeSynonyms: false,
    resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name: topic, configNames: ['retention.ms'] }],
  })
  const kept = Number(resources[0]?.configEntries.find(({ configName }) => configName === 'retention.ms')?.configValue ?? -1)
  const told = `${topic} keeps records ${kept < 0 ? 'for ever' : `for ${duration(kept)}`}, the database their traces ${horizon === 0 ? 'for ever' : `for ${duration(horizon)} (HORIZON)`}`
  if (horizon === 0 || (kept >= 0 && kept <= horizon)) return { name: 'retention', result: 'ok', told }
  return {
    name: 'retention', result: 'warning', told,
    fix: `retention.ms=${horizon} or less for the topic, or a longer HORIZON: a record read again after that is not recognised`,
  }
}
