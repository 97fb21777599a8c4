/**
 * A strict reader of RFC 8259 that keeps what JSON.parse loses: the order and the places of members, names that occur
 * twice, and the text of numbers. Places are indexes into the text that was read.
 */
export type JsonNode = JsonObject | JsonArray | JsonString | JsonPlain
export type JsonObject = {
  kind: 'object'
  start: number
  end: number
  members: JsonMember[]
  /** The first name that occurs twice. JSON.parse would silently take the last one. */
  duplicate: string | undefined
}
export type JsonArray = { kind: 'array'; start: number; end: number; items: JsonNode[] }
export type JsonString = { kind: 'string'; start: number; end: number; escaped: boolean }
export type JsonPlain = { kind: 'number' | 'true' | 'false' | 'null'; start: number; end: number }
/** `start` is the opening quote of the name; the member ends where its value ends. */
export type JsonMember = { name: string; start: number; value: JsonNode }

/** What is not JSON, and where. `truncated`: the text ended where more had to come. */
export class JsonSyntax extends Error {
  readonly kind: 'syntax' | 'truncated' | 'too_deep'
  readonly position: number

  constructor(kind: 'syntax' | 'truncated' | 'too_deep', position: number) {
    super(`not JSON: ${kind} at character ${position}`)
    this.kind = kind
    this.position = position
  }
}

// A change is three deep; the rest is room for nested values. Also bounds how often a broken line is read again.
const MAX_DEPTH = 32

export type Scan = { text: string; at: number; depth: number }

/** The one value that the whole text is. Throws JsonSyntax. */
export function parseJson(text: string): JsonNode {
  const scan = startScan(text)
  const node = readValue(scan)
  skipBlanks(scan)
  if (scan.at < text.length) throw new JsonSyntax('syntax', scan.at)
  return node
}

/** A scan at the first character that is not blank; a byte order mark counts as blank. */
export function startScan(text: string): Scan {
  const scan = { text, at: text.charCodeAt(0) === 0xfeff ? 1 : 0, depth: 0 }
  skipBlanks(scan)
  return scan
}

/** Reads the value at the scan, which must not stand on a blank, and leaves the scan behind it. Throws JsonSyntax. */
export function readValue(scan: Scan): JsonNode {
  const start = scan.at
  switch (scan.text.charCodeAt(start)) {
    case 0x7b: return readObject(scan)
    case 0x5b: return readArray(scan)
    case 0x22: {
      const escaped = passString(scan)
      return { kind: 'string', start, end: scan.at, escaped }
    }
    case 0x74: return readWord(scan, 'true')
    case 0x66: return readWord(scan, 'false')
    case 0x6e: return readWord(scan, 'null')
    default:
      passNumber(scan)
      return { kind: 'number', start, end: scan.at }
  }
}

/** Moves behind the array at the scan and returns the places of its elements; builds nothing, so it is for large ones. */
export function passArray(scan: Scan): { start: number; end: number }[] {
  const spans: { start: number; end: number }[] = []
  enter(scan)
  if (!closes(scan, 0x5d)) {
    do {
      skipBlanks(scan)
      const start = scan.at
      passValue(scan)
      spans.push({ start, end: scan.at })
    } while (continues(scan, 0x5d))
  }
  scan.depth -= 1
  return spans
}

/** The text a string means. */
export function stringValue(text: string, node: JsonString): string {
  return node.escaped ? String(JSON.parse(text.slice(node.start, node.end))) : text.slice(node.start + 1, node.end - 1)
}

/** The value without blanks and with one way of escaping, so that two spellings of it are one text; numbers as written. */
export function compactJson(text: string, node: JsonNode): string {
  switch (node.kind) {
    case 'object':
      return `{${node.members.map((member) => `${JSON.stringify(member.name)}:${compactJson(text, member.value)}`).join(',')}}`
    case 'array': return `[${node.items.map((item) => compactJson(text, item)).join(',')}]`
    case 'string': return JSON.stringify(stringValue(text, node))
    default: return text.slice(node.start, node.end)
  }
}

export function skipBlanks(scan: Scan): void {
  const { text } = scan
  let at = scan.at
  let code = text.charCodeAt(at)
  while (code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09) code = text.charCodeAt(++at)
  scan.at = at
}

function readObject(scan: Scan): JsonObject {
  const node: JsonObject = { kind: 'object', start: scan.at, end: 0, members: [], duplicate: undefined }
  const { members } = node
  let names: Set<string> | undefined
  enter(scan)
  if (!closes(scan, 0x7d)) {
    do {
      const start = passName(scan)
      const name = stringValue(scan.text, start)
      names = memberNames(members, names)
      if (names === undefined ? members.some((member) => member.name === name) : names.has(name)) node.duplicate ??= name
      names?.add(name)
      members.push({ name, start: start.start, value: readValue(scan) })
    } while (continues(scan, 0x7d))
  }
  scan.depth -= 1
  node.end = scan.at
  return node
}

// Comparing with the names before is quicker than a set up to about 16 members, which is most tables.
function memberNames(members: readonly JsonMember[], names: Set<string> | undefined): Set<string> | undefined {
  if (members.length !== 16) return names
  return new Set(members.map((member) => member.name))
}

function readArray(scan: Scan): JsonArray {
  const node: JsonArray = { kind: 'array', start: scan.at, end: 0, items: [] }
  enter(scan)
  if (!closes(scan, 0x5d)) {
    do {
      skipBlanks(scan)
      node.items.push(readValue(scan))
    } while (continues(scan, 0x5d))
  }
  scan.depth -= 1
  node.end = scan.at
  return node
}

function passValue(scan: Scan): void {
  const code = scan.text.charCodeAt(scan.at)
  if (code === 0x22) passString(scan)
  else if (code === 0x5b) passArray(scan)
  else if (code !== 0x7b) readValue(scan)
  else {
    enter(scan)
    if (!closes(scan, 0x7d)) {
      do {
        passName(scan)
        passValue(scan)
      } while (continues(scan, 0x7d))
    }
    scan.depth -= 1
  }
}

function enter(scan: Scan): void {
  scan.depth += 1
  if (scan.depth > MAX_DEPTH) throw new JsonSyntax('too_deep', scan.at)
  scan.at += 1
}

function closes(scan: Scan, closing: number): boolean {
  skipBlanks(scan)
  if (scan.text.charCodeAt(scan.at) !== closing) return false
  scan.at += 1
  return true
}

/** After an element: true behind a comma, false behind the closing bracket. */
function continues(scan: Scan, closing: number): boolean {
  skipBlanks(scan)
  const code = scan.text.charCodeAt(scan.at)
  if (code !== 0x2c && code !== closing) throw fault(scan.text, scan.at)
  scan.at += 1
  return code === 0x2c
}

/** A name, its colon and the blanks around it. */
function passName(scan: Scan): JsonString {
  skipBlanks(scan)
  const start = scan.at
  if (scan.text.charCodeAt(start) !== 0x22) throw fault(scan.text, start)
  const escaped = passString(scan)
  const end = scan.at
  skipBlanks(scan)
  if (scan.text.charCodeAt(scan.at) !== 0x3a) throw fault(scan.text, scan.at)
  scan.at += 1
  skipBlanks(scan)
  return { kind: 'string', start, end, escaped }
}

const PLAIN_RUN = /[^"\\\u0000-\u001f]*/y

/** Moves behind the string; true when it holds escapes. */
function passString(scan: Scan): boolean {
  const { text } = scan
  let at = scan.at + 1
  let escaped = false
  let patience = 64
  for (;;) {
    const code = text.charCodeAt(at)
    if (code === 0x22) break
    if (code === 0x5c) {
      escaped = true
      at = passEscape(text, at)
      patience = 64
    } else if (code >= 0x20) {
      at += 1
      // Most strings are short; in a long one the regular expression is several times quicker than this loop.
      if (--patience > 0) continue
      PLAIN_RUN.lastIndex = at
      PLAIN_RUN.test(text)
      at = Math.max(at, PLAIN_RUN.lastIndex)
      patience = 64
    } else {
      throw fault(text, at)
    }
  }
  scan.at = at + 1
  return escaped
}

function passEscape(text: string, backslash: number): number {
  const code = text.charCodeAt(backslash + 1)
  switch (code) {
    case 0x22: case 0x5c: case 0x2f: case 0x62: case 0x66: case 0x6e: case 0x72: case 0x74: return backslash + 2
    case 0x75:
      for (let at = backslash + 2; at < backslash + 6; at += 1) if (!isHex(text.charCodeAt(at))) throw fault(text, at)
      return backslash + 6
    default: throw fault(text, backslash + 1)
  }
}

function isHex(code: number): boolean {
  return (code >= 0x30 && code <= 0x39) || (code >= 0x61 && code <= 0x66) || (code >= 0x41 && code <= 0x46)
}

function readWord(scan: Scan, word: 'true' | 'false' | 'null'): JsonPlain {
  const start = scan.at
  for (let i = 1; i < word.length; i += 1) {
    if (scan.text.charCodeAt(start + i) !== word.charCodeAt(i)) throw fault(scan.text, start + i)
  }
  scan.at = start + word.length
  return { kind: word, start, end: scan.at }
}

function passNumber(scan: Scan): void {
  const { text } = scan
  if (text.charCodeAt(scan.at) === 0x2d) scan.at += 1
  if (text.charCodeAt(scan.at) === 0x30) scan.at += 1
  else passDigits(scan)
  if (text.charCodeAt(scan.at) === 0x2e) {
    scan.at += 1
    passDigits(scan)
  }
  if ((text.charCodeAt(scan.at) | 0x20) === 0x65) {
    scan.at += 1
    const sign = text.charCodeAt(scan.at)
    if (sign === 0x2b || sign === 0x2d) scan.at += 1
    passDigits(scan)
  }
}

function passDigits(scan: Scan): void {
  const first = scan.at
  for (let code = scan.text.charCodeAt(first); code >= 0x30 && code <= 0x39; ) code = scan.text.charCodeAt(++scan.at)
  if (scan.at === first) throw fault(scan.text, first)
}

function fault(text: string, at: number): JsonSyntax {
  return new JsonSyntax(at >= text.length ? 'truncated' : 'syntax', at)
}
