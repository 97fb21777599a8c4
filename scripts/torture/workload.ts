import type { Sql } from 'postgres'

/** One body that is sent to the listener. */
export type Posting = {
  /** `/events`, `/kafkaevents` or `/fileevents`. */
  path: string
  /** Texts of the changes in it, byte for byte, in order; none where the body is no change. */
  documents: readonly string[]
  /** `single` has one document; `garbage` is sent as it is and must be rejected. */
  form: 'single' | 'array' | 'ndjson' | 'garbage'
  /** What is sent where the form is garbage. */
  garbage?: Buffer
  /** The table of each document, and whether the target will refuse it as it is. */
  changes: readonly { table: string; refused: boolean }[]
  /** Sent by the second source, which has a listener and a database of its own. */
  second?: true
  /** Rows it touches: what comes later and touches one of them waits for its answer, as the source's row locks have it. */
  rows: readonly string[]
  /** Sent so often at the same time; every answer must carry the same numbers. */
  times: number
}

/** What one source does. All that is random comes from the numbers it was opened with. */
export type Workload = {
  name: string
  /** Statements that make its tables in the target, in the schema `torture`; none where the service makes them. */
  tables: string
  /** The next transaction: its posts in the order in which they are sent, each after the answer to the one before. */
  next: () => Posting[]
  /** What is wrong with its tables now that all of that is through; nothing when they are those of the model. */
  faults: (sql: Sql) => Promise<string[]>
}

/** Microseconds since 1970, larger at every call, close to now: the TIME of the changes of all workloads of a run. */
export type SourceClock = () => number
