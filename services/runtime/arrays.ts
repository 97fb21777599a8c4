import type { PostgresType } from 'postgres'
import { parse } from 'postgres-array'

type ArrayType = PostgresType<readonly (string | number | null)[] | string>

/**
 * Arrays as the driver reads and writes them, without asking the server for its types: that question costs a round trip
 * a connection, and postgres.js 3.4.9 waits for its answer nowhere, so a connection lost meanwhile ends the process.
 * Elements come as text, those of int2[] and int4[] as numbers; what is given as an array's text already goes as it is.
 */
export const arrayTypes: { arrays: ArrayType; numberArrays: ArrayType } = {
  // bool[], text[], int8[], timestamptz[], uuid[], jsonb[]; bytea[] would need its own writing.
  arrays: { to: 1009, from: [1000, 1009, 1016, 1185, 2951, 3807], serialize: literal, parse: (text: string) => parse(text) },
  numberArrays: { to: 1007, from: [1005, 1007], serialize: literal, parse: (text: string) => parse(text, Number) },
}

function literal(values: readonly (string | number | null)[] | string): string {
  if (typeof values === 'string') return values
  return `{${values.map((value) => value === null ? 'NULL' : `"${String(value).replace(/["\\]/g, '\\$&')}"`).join()}}`
}
