import type { Random } from '../../demo/random.ts'
import type { Workload } from '../workload.ts'
import { documentOf, type Parts } from './document.ts'
import { PATHS } from './postings.ts'

type Make = (good: string, random: Random) => string | Buffer

const KINDS: readonly Make[] = [
  () => '', () => ' \r\n\t', () => 'null', () => 'true', () => '17', () => '"text"', () => '[]', () => '{}', () => '[[], 5, null]',
  () => 'name=value&x=1', () => '<html><body>502 Bad Gateway</body></html>', () => '{"hello": "world"}',
  (good, random) => good.slice(0, 1 + random.below(good.length - 2)),
  (good) => `[${good}, ${good}`,
  (good) => good.replace(/"TIME": "[^"]*"/, '"TIME": 5'),
  (good) => good.replace(/"TIME": "[^"]*"/, '"TIME": "yesterday"'),
  (good) => good.replace(/"TIME": "[^"]*", /, ''),
  (good) => good.replace('"INSERT"', '"TRUNCATE"'),
  (good) => good.replace('"INSERT"', '["INSERT"]'),
  (good) => good.replace('"garbage"', '{"name": "garbage"}'),
  (good) => good.replace('"garbage"', '""'),
  (good) => good.replace('"garbage"', `"${'g'.repeat(64)}"`),
  (good) => good.replace('"DATA":  {', '"DATA": [').replace('}', ']'),
  (good) => good.replace('"id" :', '"id" : "0", "id" :'),
  (good) => good.replace('some text', 'a \\u0000 in it'),
  (good) => good.replace('some text', 'half a \\ud83d snail'),
  (good) => good.replace('some text', 'say "hi"'),
  (good) => good.replace('some text', 'raw\u0001control'),
  (good) => Buffer.from(good.replace('some text', 'café'), 'latin1'),
  (good, random) => Buffer.concat([Buffer.from(good), Buffer.from([0x80 + random.below(0x40)])]),
  (_, random) => Buffer.from(Array.from({ length: 1 + random.below(300) }, (__, at) => (at === 0 ? 0xff : random.below(256)))),
  () => '{"originator": "tc-postgres-delta-processor", "operation": "UPDATE", "schema": "torture", "table": "garbage", "data": {"id": "1"}}',
]

/** Bodies that are no change, as broken senders, scanners and wrong addresses post them. Nothing of any of them may arrive. */
export function garbage({ random, clock }: Parts): Workload {
  let posts = 0
  return {
    name: 'garbage',
    tables: '',
    next() {
      const image = { id: String(posts += 1), text: 'some text' }
      const good = documentOf({ table: 'garbage', time: clock(), before: null, after: image, rows: [] }, random)
      const body = random.pick(KINDS)(good, random)
      return [{ path: random.pick(PATHS), documents: [], form: 'garbage', garbage: Buffer.from(body), changes: [], rows: [], times: 1 }]
    },
    async faults(sql) {
      const [row] = await sql<{ there: boolean }[]>`select to_regclass('torture.garbage') is not null as there`
      return row?.there === true ? ['there is a table torture.garbage: a body that was no change was applied'] : []
    },
  }
}
