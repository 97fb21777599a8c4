/** Writes a line to stdout, which carries what was asked for and nothing else. */
export function say(line = ''): void {
  process.stdout.write(`${line}\n`)
}

/** One document, for programs: numbers of 64 bits are strings, names are those of the columns. */
export function sayJson(value: unknown): void {
  say(JSON.stringify(value, null, 2))
}

/** Rows below the names of their fields, columns as wide as needed. An empty list says so. */
export function sayTable(rows: readonly Record<string, unknown>[], empty = '(none)'): void {
  const [first] = rows
  if (first === undefined) return say(`  ${empty}`)
  const names = Object.keys(first)
  const cells = rows.map((row) => names.map((name) => cell(row[name])))
  const widths = names.map((name, at) => Math.max(name.length, ...cells.map((row) => row[at]?.length ?? 0)))
  const line = (row: readonly string[]): void => say(`  ${row.map((text, at) => text.padEnd(widths[at] ?? 0)).join('  ')}`.trimEnd())
  line(names)
  for (const row of cells) line(row)
}

/** Pairs of a name and a value, the values under each other; those without a value are left out. */
export function sayFields(fields: Record<string, unknown>): void {
  const shown = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined)
  const width = Math.max(0, ...shown.map(([name]) => name.length))
  for (const [name, value] of shown) say(`  ${name.padEnd(width)}  ${cell(value)}`)
}

/** 950 ms, 12.3 s, 4 min, 3.2 h, 5 d. */
export function duration(ms: number): string {
  if (Math.abs(ms) < 1_000) return `${ms.toFixed(Math.abs(ms) < 10 ? 1 : 0)} ms`
  if (Math.abs(ms) < 120_000) return `${(ms / 1_000).toFixed(1)} s`
  if (Math.abs(ms) < 7_200_000) return `${(ms / 60_000).toFixed(0)} min`
  return Math.abs(ms) < 172_800_000 ? `${(ms / 3_600_000).toFixed(1)} h` : `${(ms / 86_400_000).toFixed(0)} d`
}

/** 512 B, 1.4 MB. */
export function size(bytes: number): string {
  if (bytes < 1_024) return `${bytes} B`
  const power = Math.min(4, Math.floor(Math.log2(bytes) / 10))
  return `${(bytes / 1_024 ** power).toFixed(1)} ${['B', 'KB', 'MB', 'GB', 'TB'][power]}`
}

function cell(value: unknown): string {
  if (value === null || value === undefined) return '-'
  if (typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean' || typeof value === 'bigint') return String(value)
  return JSON.stringify(value)
}
