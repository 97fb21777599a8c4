import { join, relative } from 'node:path'
import { Argument, type Command, InvalidArgumentError } from 'commander'

import { inClone } from './clone.ts'
import { STATE_FOLDER } from './environment.ts'
import { wholeNumber } from './migrate.ts'

export type BenchOptions = { seconds: number; rate: number; events: number; backlog: number; repeat: number; json?: string; compare?: string; log: string; peers?: Peer[] }

const SCENARIOS = ['refusals', 'pipeline', 'naive', 'post', 'end-to-end', 'relay', 'apply', 'restart', 'idle', 'scale', 'backlog'] as const
export const PEERS = ['naive', 'native', 'debezium', 'debezium-json', 'pg-transactional-outbox'] as const
export type Peer = (typeof PEERS)[number]

export function addBench(program: Command): void {
  program.command('bench')
    .description('measures the service on servers of its own, and checks every run')
    .addArgument(new Argument('[scenario...]', 'what to measure; all: all but backlog, which takes an hour').choices([...SCENARIOS, 'all']))
    .option('--seconds <n>', 'how long a run at a fixed rate, or a run of posts, lasts', wholeNumber, 20)
    .option('--rate <n>', 'changes a second of a run at a fixed rate', wholeNumber, 1_000)
    .option('--events <n>', 'changes of a run that empties what is full', wholeNumber, 200_000)
    .option('--backlog <n>', 'changes that wait, of the scenario backlog', wholeNumber, 10_000_000)
    .option('--repeat <n>', 'how often each variant runs', wholeNumber, 3)
    .option('--peers <names>', 'measures the pipeline and these peers: a,b or all', peersNamed)
    .option('--json <file>', 'writes every run there')
    .option('--compare <file>', 'an earlier --json: a ratio that is 20 % lower fails')
    .option('--log <file>', 'where the roles of the bench log', relative('.', join(STATE_FOLDER, 'bench.log')))
    .addHelpText('after', `
refusals    a topic with 1 % refused changes against the same without, applied by one consumer
pipeline    outbox, Kafka and target: a full outbox emptied, also with hot rows and with an old snapshot, and a fixed rate with its latency
naive       a peer: the audit pipeline with statements row by row
post        HTTP to commit     end-to-end  a post to its row at a fixed rate
relay       a full outbox to the topic alone     apply  a full topic to the target alone
restart     SIGKILL of each role in turn at a fixed rate, until nothing waits for longer than a second
backlog     so many changes waiting (--backlog), with the statistics of an empty table and analysed, and the latency afterwards
scale       a full outbox emptied by one, two and four relays and as many consumers
idle        what the roles cost when nothing comes, and the first change after that

Peers, each fed the same changes on servers with the same settings, and one table at the end:
naive                    statements row by row     native         logical replication of PostgreSQL, no Kafka
debezium                 its best settings         debezium-json  envelopes with schemas
pg-transactional-outbox  from its outbox to Kafka and no further
Debezium takes Java 17 and, the first time, Maven; its settings are in scripts/bench/peers/debezium.

Figures of one bench can be compared with each other; those of two only by their ratios.
Exits with 3 where a run lost, doubled or spoilt a change, or a ratio dropped.

Examples:
  npm run bench -- refusals --events 50000
  npm run bench -- all --json .deltapost/bench.json
  npm run bench -- --peers all --repeat 3
  npm run bench -- pipeline naive --rate 5000 --compare .deltapost/bench.json`)
    .action(async (names: string[], options: BenchOptions, command: Command) => {
      if (names.length === 0 && options.peers === undefined) command.error("error: missing argument 'scenario' (or --peers)")
      const { bench } = await inClone('bench', () => import('../bench/main.ts'))
      process.exitCode = await bench(names.includes('all') ? SCENARIOS.filter((name) => name !== 'backlog') : [...new Set(names)], options)
    })
}

function peersNamed(text: string): Peer[] {
  if (text === 'all') return [...PEERS]
  return [...new Set(text.split(',').map((name) => {
    const peer = PEERS.find((known) => known === name.trim())
    if (peer === undefined) throw new InvalidArgumentError(`"${name}" is none of ${PEERS.join(', ')}, all.`)
    return peer
  }))]
}
