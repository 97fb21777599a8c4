import type { Sql } from './sql.ts'

/** A row of outbox.relation: what is known of one table of a source. `keyColumns` null: no key is known. */
export type Relation = {
  id: number
  source: string
  sourceSchema: string
  sourceTable: string
  targetSchema: string
  targetTable: string
  knownFrom: 'registered' | 'target' | 'payload'
  keyColumns: string[] | null
  columns: string[]
  /** The target table was made from payloads, so it gains the columns they bring. */
  created: boolean
  capture: string
  epoch: number
  state: 'ACTIVE' | 'STOPPED'
  stopReason: string | null
  /** Grows with every change of the row. */
  revision: number
  metAt: string
}

/** The relation of a table, entered in the catalogue at first sight. */
export async function meetRelation(sql: Sql, source: string, schema: string, table: string): Promise<Relation> {
  const [relation] = await sql<Relation[]>`
    select id, source, source_schema as "sourceSchema", source_table as "sourceTable", target_schema as "targetSchema",
           target_table as "targetTable", known_from as "knownFrom", key_columns as "keyColumns", columns, created, capture,
           epoch, state, stop_reason as "stopReason", revision, met_at as "metAt"
    from outbox.meet(${source}, ${schema}, ${table})`
  if (relation === undefined) throw new Error(`outbox.meet returned no row for ${schema}.${table}`)
  return relation
}

/** All relations, in the order in which they were met. */
export async function loadRelations(sql: Sql): Promise<Relation[]> {
  return sql<Relation[]>`
    select id, source, source_schema as "sourceSchema", source_table as "sourceTable", target_schema as "targetSchema",
           target_table as "targetTable", known_from as "knownFrom", key_columns as "keyColumns", columns, created, capture,
           epoch, state, stop_reason as "stopReason", revision, met_at as "metAt"
    from outbox.relation order by id`
}

/** Key columns by table, as the listener remembers them. */
export type KeyMemory = {
  /** undefined: not met yet; null: met, and no key is known. */
  keyOf: (schema: string, table: string) => readonly string[] | null | undefined
  /** Meets the relation; callers that ask for one table at the same time share one statement. */
  meet: (schema: string, table: string) => Promise<readonly string[] | null>
  refresh: () => Promise<void>
}

/**
 * Remembers the keys of relations. What it says may be some seconds old, which is harmless: only the lane comes from it.
 * The epoch, which must be right, is read by the intake statement itself.
 */
export function rememberKeys(run: <T>(work: (sql: Sql) => PromiseLike<T>) => Promise<T>, source: string): KeyMemory {
  const known = new Map<string, readonly string[] | null>()
  const meeting = new Map<string, Promise<readonly string[] | null>>()

  async function meet(name: string, schema: string, table: string): Promise<readonly string[] | null> {
    try {
      const relation = await run((sql) => meetRelation(sql, source, schema, table))
      known.set(name, relation.keyColumns)
      return relation.keyColumns
    } finally {
      meeting.delete(name)
    }
  }

  return {
    keyOf: (schema, table) => known.get(`${schema}\0${table}`),
    meet(schema, table) {
      const name = `${schema}\0${table}`
      const promise = meeting.get(name) ?? meet(name, schema, table)
      meeting.set(name, promise)
      return promise
    },
    async refresh() {
      const relations = await run(loadRelations)
      for (const { sourceSchema, sourceTable, keyColumns } of relations) known.set(`${sourceSchema}\0${sourceTable}`, keyColumns)
    },
  }
}
