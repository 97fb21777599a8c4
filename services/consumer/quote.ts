/** An identifier, quoted. */
export function ident(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

/** A text as a constant of SQL. */
export function literal(text: string): string {
  return `'${text.replaceAll("'", "''")}'`
}
