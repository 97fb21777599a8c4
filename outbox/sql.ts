import type { Sql as PostgresSql } from 'postgres'

/** A connection of postgres.js as this project opens it: bigint, numeric and timestamps come as text, nothing is rounded. */
export type Sql = PostgresSql<{ timestamp: string }>
