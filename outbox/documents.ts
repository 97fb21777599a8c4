import { JsonSyntax, passArray, readValue, skipBlanks, startScan } from './json.ts'
import type { JsonNode, Scan } from './json.ts'

/**
 * One document of a body: its place in the text and, where it is not an element of an array, its parsed form.
 * `fault` says why it is none.
 */
export type Document = { start: number; end: number; node?: JsonNode; fault?: JsonSyntax; inArray: boolean }

/**
 * The documents of a body, in order: one object, an array (each element is one), NDJSON, or objects without anything
 * between them, as spool files hold them.
 *
 * A broken document ends where the next line begins with `{`, so that it takes no good line with it: not at every line
 * end, because the sender writes line feeds of a value as they are. In a broken array no element can be told from another,
 * so it is one faulty document to the end of the body. Yields nothing for a blank body.
 */
export function* documentsOf(text: string): Generator<Document, void, undefined> {
  const scan = startScan(text)
  while (scan.at < text.length) {
    const start = scan.at
    if (text.charCodeAt(start) === 0x5b) {
      yield* elementsAt(scan)
    } else {
      yield documentAt(scan)
    }
    scan.depth = 0
    skipBlanks(scan)
  }
}

function documentAt(scan: Scan): Document {
  const start = scan.at
  try {
    const node = readValue(scan)
    return { start, end: scan.at, node, inArray: false }
  } catch (error) {
    if (!(error instanceof JsonSyntax)) throw error
    const lineEnd = scan.text.indexOf('\n{', start)
    scan.at = lineEnd === -1 ? scan.text.length : lineEnd + 1
    return { start, end: scan.at, fault: error, inArray: false }
  }
}

function elementsAt(scan: Scan): Document[] {
  const start = scan.at
  try {
    const spans = passArray(scan)
    if (spans.length === 0) return [{ start, end: scan.at, node: { kind: 'array', start, end: scan.at, items: [] }, inArray: false }]
    return spans.map((span) => ({ ...span, inArray: true }))
  } catch (error) {
    if (!(error instanceof JsonSyntax)) throw error
    scan.at = scan.text.length
    return [{ start, end: scan.at, fault: error, inArray: false }]
  }
}
