import { InvalidArgumentError } from 'commander'

/** A table of the source. */
export type TableName = { schema: string; table: string }

/** schema.table, as the source names it. */
export function tableName(text: string): TableName {
  const at = text.indexOf('.')
  if (at < 1 || at === text.length - 1) throw new InvalidArgumentError('schema and table are expected, with a dot between them')
  return { schema: text.slice(0, at), table: text.slice(at + 1) }
}
