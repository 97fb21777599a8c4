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

type Partition = { partition: number; messages: readonly { value: unknown }[] }
type ProduceOptions = { acks: number; timeout: number; topicData: readonly { topic: string; partitions: readonly Partition[] }[] }
type ProduceRequest = (options: ProduceOptions) => { encode: () => Promise<unknown> }

type Encoder = {
  buf: Buffer
  offset: number
  writeString(text: string | null): Encoder
  writeInt16(number: number): Encoder
  writeInt32(number: number): Encoder
  writeBuffer(bytes: Buffer): Encoder
}
type EncoderClass = { new (size?: number): Encoder; prototype: Encoder & { ensureAvailable(length: number): void }; nextPowerOfTwo(size: number): number }

let patched = false
const batches = new WeakSet<Buffer>()

/** A message that stands for all of its partition: `batch` goes to the broker as it is, as its record set. */
export function batchMessage(partition: number, batch: Buffer): { partition: number; value: Buffer } {
  batches.add(batch)
  return { partition, value: batch }
}

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

  patchProduce()

  const compress = promisify(zstdCompress)
  const decompress = promisify(zstdDecompress)
  const level = { params: { [constants.ZSTD_c_compressionLevel]: 1 } }
  kafkajs.CompressionCodecs[kafkajs.CompressionTypes.ZSTD] = () => ({
    compress: async (encoder: { buffer: Buffer }) => compress(encoder.buffer, level),
    decompress: async (data: Buffer) => decompress(data),
  })
  patched = true
}

/**
 * Lets a produce request carry record batches that are bytes already. Versions 4 to 7 are made of version 3, which is the
 * first with headers; all are loaded when the first request is sent, so what is put in its place now is what they take.
 */
function patchProduce(): void {
  const file = 'kafkajs/src/protocol/requests/produce/v3/request'
  const original = require(file) as ProduceRequest // untyped file of the package
  const Encoder = require('kafkajs/src/protocol/encoder') as EncoderClass // untyped file of the package
  require.cache[require.resolve(file)]!.exports = (options: ProduceOptions) => {
    const request = original(options)
    return bytesOf(options) === undefined ? request : { ...request, encode: async () => encodeProduce(Encoder, options) }
  }
  // Every request is copied into a buffer of twice its size that was filled with zeros first; what is written is all that is sent.
  Encoder.prototype.ensureAvailable = function (length) {
    if (this.offset + length <= this.buf.length) return
    const larger = Buffer.allocUnsafe(Encoder.nextPowerOfTwo(this.offset + length))
    this.buf.copy(larger, 0, 0, this.offset)
    this.buf = larger
  }
}

/** How many bytes the batches of a request have; undefined where there are messages among them. */
function bytesOf({ topicData }: ProduceOptions): number | undefined {
  const all = topicData.flatMap(({ partitions }) => partitions.flatMap(({ messages }) => messages.map(({ value }) => value)))
  return all.every((value) => Buffer.isBuffer(value) && batches.has(value)) ? all.reduce<number>((sum, value) => sum + (value as Buffer).length, 0) : undefined
}

function encodeProduce(Encoder: EncoderClass, options: ProduceOptions): Encoder {
  const { acks, timeout, topicData } = options
  const request = new Encoder(bytesOf(options)! + 1_024).writeString(null).writeInt16(acks).writeInt32(timeout).writeInt32(topicData.length)
  for (const { topic, partitions } of topicData) {
    request.writeString(topic).writeInt32(partitions.length)
    for (const { partition, messages } of partitions) {
      if (messages.length !== 1) throw new Error(`${messages.length} batches for the partition ${partition} of ${topic}: a request takes one`)
      const bytes = messages[0]!.value as Buffer
      request.writeInt32(partition).writeInt32(bytes.length).writeBuffer(bytes)
    }
  }
  return request
}

/** kafkajs never sets TCP_NODELAY. */
export const noDelaySocket: ISocketFactory = ({ host, port, ssl, onConnect }) => {
  const address = { host, port, noDelay: true, keepAlive: true, keepAliveInitialDelay: 60_000 }
  return ssl === undefined || ssl === null
    ? tcp(address, onConnect)
    : tls({ ...address, servername: host, ...ssl }, onConnect)
}
