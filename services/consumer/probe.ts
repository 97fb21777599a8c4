import { sqlstateOf } from '../runtime/slot.ts'
import type { Slot } from '../runtime/slot.ts'
import { buildElement } from './element.ts'
import type { Arrival, Element, ElementShape } from './element.ts'
import { kindOf } from './failure.ts'
import type { Prepared } from './relations.ts'
import { ident, literal } from './quote.ts'
import type { StatementShape } from './statement.ts'
import type { TargetCheck, TargetColumn } from './target.ts'

/** A change ready to be sent: its element, and the JSON text of that without "~i", from behind the opening brace. */
export type Candidate = { arrival: Arrival; element: Element; text: string }

/** Which partition a change lies in, where a document has those of several. */
export type LiesIn = (arrival: Arrival) => number

/** Why the target would refuse a change, as Postgres says it. */
export type Refusal = { sqlstate: string; message: string }

/** Builds what is sent of each change, once for the probe and for the apply. */
export function candidatesOf(arrivals: readonly Arrival[], shape: ElementShape): Candidate[] {
  return arrivals.map((arrival) => {
    const element = buildElement(arrival, shape)
    return { arrival, element, text: JSON.stringify(element).slice(1) }
  })
}

/** The document of some candidates; "~i" is the place of each in it, from 1, and "~pt" its partition. */
export function documentOf(candidates: readonly Candidate[], liesIn?: LiesIn): string {
  const head = (arrival: Arrival): string => (liesIn === undefined ? '' : `"~pt":${liesIn(arrival)},`)
  return `[${candidates.map(({ arrival, text }, at) => `{"~i":${at + 1},${head(arrival)}${text}`).join()}]`
}

/**
 * The changes that the target's types, NOT NULLs and CHECKs refuse, and all others of the same rows (`among` has both),
 * which must keep their order with them. Finds no types and CHECKs on PostgreSQL 15, which can ask of a text only by failing;
 * then a batch that fails is taken one by one.
 */
export async function probe(slot: Slot, prepared: Prepared, candidates: readonly Candidate[]): Promise<{ refused: ReadonlyMap<Candidate, Refusal>; among: ReadonlySet<Candidate> }> {
  const readable = candidates.filter(isReadable)
  const refused = new Map(candidates.length === readable.length ? [] : candidates.filter((one) => !isReadable(one)).map((one) => [one, UNSTORABLE]))
  for (const { i, ...refusal } of await refusals(slot, prepared, readable)) refused.set(readable[i - 1]!, refusal)
  const { key } = prepared.shape
  if (refused.size === 0 || key.length === 0) return { refused, among: new Set(refused.keys()) }
  const rows = new Set([...refused.keys()].flatMap(({ arrival }) => rowsOf(arrival, key)))
  return { refused, among: new Set(candidates.filter(({ arrival }) => rowsOf(arrival, key).some((row) => rows.has(row)))) }
}

async function refusals(slot: Slot, prepared: Prepared, candidates: readonly Candidate[]): Promise<(Refusal & { i: number })[]> {
  if (candidates.length === 0) return []
  try {
    const text = prepared.statements.probe.replace('($1)', '($1::text::json)')
    return await slot.run((sql) => sql.unsafe<(Refusal & { i: number })[]>(text, [documentOf(candidates)]))
  } catch (error) {
    // 42883: no pg_input_is_valid, on 15. A CHECK may raise an error where it should only say no, and so may a type of an extension.
    if (sqlstateOf(error) === '42883' || kindOf(error) === 'change') return []
    throw error
  }
}

/** The rows a change is of, by the text of their keys: before and after it. */
function rowsOf(arrival: Arrival, key: readonly string[]): string[] {
  const image = (side: 'old' | 'new', other: 'old' | 'new'): string => JSON.stringify(key.map((name) => {
    const column = arrival.change.columns.find((one) => one.name === name)
    return (column?.[side] ?? column?.[other])?.trimEnd() ?? null
  }))
  return [...new Set([image('new', 'old'), image('old', 'new')])]
}

export const UNSTORABLE: Refusal = { sqlstate: '22P05', message: 'a value has a character that Postgres cannot store (NUL, or half of a surrogate pair)' }

/** json can hold what text cannot, as escapes; one such value makes the whole document unreadable. Records are quoted twice. */
function isReadable({ element, text }: Candidate): boolean {
  return !/\\u(?:0000|d[89a-f])/.test(text) || isStorable(element)
}

/** False for an element with a character that no text of Postgres can have. */
export function isStorable(element: Element): boolean {
  return Object.entries(element).every(([name, value]) =>
    name === '~p' || (typeof value === 'object' && value !== null ? isStorable(value as Element) : typeof value !== 'string' || (!value.includes('\0') && value.isWellFormed())))
}

/** Says without raising an error which elements the columns and CHECKs of the table refuse, and why: one statement for any number of them. */
export function probeText({ table, columns, checks, seen }: StatementShape): string {
  const texts = columns.map((column) => `, ${ident(column.name)} text`).join('')
  const typed = columns.filter((column) => column.type !== 'text')
  const isNull = (column: TargetColumn): string =>
    `c.${ident(column.name)} is null and c."~op" <> 'DELETE' and not coalesce(c."~u" ? ${literal(column.name)}, false)`
  const causes = [
    ...typed.map((column) => `when not coalesce(pg_input_is_valid(c.${ident(column.name)}, ${literal(column.type)}), true)
    then (select jsonb_build_array(e.sql_error_code, e.message) from pg_input_error_info(c.${ident(column.name)}, ${literal(column.type)}) e)`),
    // What the source never sends and the target must have is no change's fault: inbox.apply_item tells the relation's.
    ...columns.filter((column) => column.notNull).map((column) =>
      `when ${isNull(column)}${seen.has(column.name) ? '' : ` and c."~op" <> 'INSERT'`} then ${answer('23502', `null value in column "${column.name}" of relation "${table}" violates not-null constraint`)}`),
    // Behind the types, so all values can be cast.
    ...checks.filter((check) => check.columns.every((name) => columns.some((column) => column.name === name))).map((check) =>
      `when c."~op" <> 'DELETE' and c."~u" is null and (select not (${check.expression}) from (select ${valuesOf(check, columns)}) as it)
    then ${answer('23514', `new row for relation "${table}" violates check constraint "${check.name}"`)}`),
  ]
  if (causes.length === 0) return `select 0 as i, '' as sqlstate, '' as message where $1::json is null`
  return `select p.i, p.why ->> 0 as sqlstate, p.why ->> 1 as message
from (
  select c."~i" as i, case ${causes.join('\n  ')} end as why
  from json_to_recordset($1) as c("~i" integer, "~op" text, "~u" jsonb${texts})
) as p where p.why is not null`
}

function answer(sqlstate: string, message: string): string {
  return `jsonb_build_array('${sqlstate}', ${literal(message)})`
}

function valuesOf(check: TargetCheck, columns: readonly TargetColumn[]): string {
  return columns.filter((column) => check.columns.includes(column.name))
    .map((column) => `c.${ident(column.name)}::${column.type} as ${ident(column.name)}`).join(', ') || '1 as one'
}
