import { createRequire } from 'node:module'
import { connect as tcp } from 'node:net'
import { connect as tls } from 'node:tls'
import { promisify } from 'node:util'
import { constants, zstdCompress, zstdDecompress } from 'node:zlib'
import kafkajs from 'kafkajs'
import type { ISocketFactory } from 'kafkajs'

const require = createRequire(import.meta.url)

/** The part of kafkajs's request queue that the patch below touches. */
type RequestQueue = {
  pending: unknown[]
  throttledUntil: number
  throttleCheckTimeoutId: NodeJS.Timeout | null
  checkPendingRequests(): void
  scheduleCheckPendingRequests(): void
}

type MetadataResponse = {
  parse: (data: { topicMetadata: { partitionMetadata: { partitionErrorCode: number; leader: number }[] }[] }) => Promise<unknown>
}

let patched = false

/**
 * Mends kafkajs 2.2.4 in place, once a process; any other version is refused, because the patch reaches into its files.
 *
 * The request queue arms a timer of -1 ms, which is 1 ms, for ever on every connection: 2.8 % of a core when idle, 0.6 %
 * without. zstd comes from Node; the codec packages for it do not build.
 */
export function patchKafkajs(): void {
  if (patched) return
  const { version } = require('kafkajs/package.json') as { version: string } // untyped file of the package
  if (version !== '2.2.4') throw new Error(`kafkajs ${version} is installed: the patches were written for 2.2.4`)

  const queue = require('kafkajs/src/network/requestQueue') as { prototype: RequestQueue } // untyped file of the package
  queue.prototype.scheduleCheckPendingRequests = function (this: RequestQueue) {
    if (this.pending.length === 0 || this.throttleCheckTimeoutId !== null) return
    const wait = this.throttledUntil - Date.now()
    if (wait <= 0) return // full, not throttled: the next response drains it
    this.throttleCheckTimeoutId = setTimeout(() => {
      this.throttleCheckTimeoutId = null
      this.checkPendingRequests()
    }, wait)
  }

  // One partition without a leader makes kafkajs refuse the metadata of the whole topic, and with it every other partition.
  // Let through, only a send to that partition fails (no broker -1), and asks for new metadata.
  const { parse } = require('kafkajs/src/protocol/requests/metadata/v0/response') as MetadataResponse // untyped file of the package
  const LEADER_NOT_AVAILABLE = 5
  for (const number of [0, 1, 2, 3, 4, 5, 6]) {
    const response = require(`kafkajs/src/protocol/requests/metadata/v${number}/response`) as MetadataResponse // untyped file of the package
    response.parse = async (data) => {
      if (data.topicMetadata.some(({ partitionMetadata }) => partitionMetadata.some(({ leader }) => leader >= 0))) {
        for (const { partitionMetadata } of data.topicMetadata) {
          for (const one of partitionMetadata) if (one.partitionErrorCode === LEADER_NOT_AVAILABLE) one.partitionErrorCode = 0
        }
      }
      return parse(data)
    }
  }

  const compress = promisify(zstdCompress)
  const decompress = promisify(zstdDecompress)
  const level = { params: { [constants.ZSTD_c_compressionLevel]: 1 } }
  kafkajs.CompressionCodecs[kafkajs.CompressionTypes.ZSTD] = () => ({
    compress: async (encoder: { buffer: Buffer }) => compress(encoder.buffer, level),
    decompress: async (data: Buffer) => decompress(data),
  })
  patched = true
}

/** kafkajs never sets TCP_NODELAY. */
export const noDelaySocket: ISocketFactory = ({ host, port, ssl, onConnect }) => {
  const address = { host, port, noDelay: true, keepAlive: true, keepAliveInitialDelay: 60_000 }
  return ssl === undefined || ssl === null
    ? tcp(address, onConnect)
    : tls({ ...address, servername: host, ...ssl }, onConnect)
}
