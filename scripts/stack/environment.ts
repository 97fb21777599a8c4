import { connect } from 'node:net'

import { DeltapostError } from '../../outbox/errors.ts'
import type { StackOptions, Way } from './stack.ts'

const ANSWER_SECONDS = 5

/** Servers that somebody else runs. Nothing is started or stopped, but both must answer. */
export const environmentWay: Way = {
  name: 'environment',
  missing: async (options) => {
    const { databaseUrl, kafkaBrokers } = addresses(options)
    const absent = [databaseUrl === '' ? 'DATABASE_URL' : '', kafkaBrokers === '' ? 'KAFKA_BROKERS' : ''].filter((name) => name !== '')
    if (absent.length === 0) return undefined
    return `${absent.join(' and ')} ${absent.length === 1 ? 'is' : 'are'} not set (both are needed)`
  },
  start: async (options) => {
    const { databaseUrl, kafkaBrokers } = addresses(options)
    const { hostname, port } = new URL(databaseUrl)
    await reach('DATABASE_URL', hostname, port === '' ? 5432 : Number(port))
    // One broker that answers is enough: it names the others.
    await Promise.any(
      kafkaBrokers.split(',').map((broker) => {
        const [host = '', brokerPort = '9092'] = broker.trim().split(':')
        return reach('KAFKA_BROKERS', host, Number(brokerPort))
      }),
    ).catch((error: unknown) => {
      throw error instanceof AggregateError ? error.errors[0] : error
    })
    return { databaseUrl, kafkaBrokers, stop: async () => {} }
  },
}

function addresses(options: StackOptions): { databaseUrl: string; kafkaBrokers: string } {
  const environment = options.environment ?? process.env
  return { databaseUrl: environment['DATABASE_URL'] ?? '', kafkaBrokers: environment['KAFKA_BROKERS'] ?? '' }
}

async function reach(variable: string, host: string, port: number): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const refuse = (cause: Error): void => {
      socket.destroy()
      const message = `${variable} names ${host}:${port}, which does not answer (${cause.message})`
      reject(new DeltapostError('STACK_UNREACHABLE', message, `start that server, or unset ${variable}`, { cause, retry: true }))
    }
    const socket = connect({ host, port })
    socket.setTimeout(ANSWER_SECONDS * 1000, () => refuse(new Error(`no answer in ${ANSWER_SECONDS} s`)))
    socket.once('error', refuse)
    socket.once('connect', () => {
      socket.destroy()
      resolve()
    })
  })
}
