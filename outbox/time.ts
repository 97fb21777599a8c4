const TIME = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(Z|[+-]\d\d:\d\d)$/
const DAY = 86_400_000

/**
 * A sender's TIME as microseconds since 1970, or undefined when it is none.
 *
 * The trigger prints local time of its zone with a Z behind it, and microseconds without leading zeros: `.5Z` is 5 µs.
 * In the hour that is repeated when summer time ends, the candidate nearest to the receipt is taken; in the hour that is
 * left out the clock's next one. With a real offset (`+02:00`), which the trigger never sends, the text is ISO 8601: the
 * offset counts, and `.5` is half a second.
 */
export function sourceMicros(text: string, zone: string, receivedAtMs: number): bigint | undefined {
  const match = TIME.exec(text)
  if (match === null) return undefined
  const wall = wallClock(match)
  if (wall === undefined) return undefined
  const [fraction = '', ending = 'Z'] = match.slice(7)
  if (ending === 'Z') return BigInt(instantOf(wall, zone, receivedAtMs)) * 1000n + BigInt(fraction)
  const offset = offsetOf(ending)
  return offset === undefined ? undefined : BigInt(wall - offset) * 1000n + BigInt(fraction.padEnd(6, '0'))
}

/** As Postgres reads it: `YYYY-MM-DD HH:MM:SS.ffffff+00`. For the years 1970 to 9999. */
export function microsToTimestamp(micros: bigint): string {
  const seconds = micros / 1_000_000n
  const text = new Date(Number(seconds) * 1000).toISOString()
  return `${text.slice(0, 10)} ${text.slice(11, 19)}.${String(micros % 1_000_000n).padStart(6, '0')}+00`
}

/** The fields as if they were UTC, in milliseconds; undefined where the calendar has no such moment. */
function wallClock(match: RegExpExecArray): number | undefined {
  const [year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0] = match.slice(1, 7).map(Number)
  if (year < 1971 || month < 1 || month > 12 || hour > 23 || minute > 59 || second > 59) return undefined
  const wall = Date.UTC(year, month - 1, day, hour, minute, second)
  return new Date(wall).getUTCDate() === day ? wall : undefined
}

function offsetOf(ending: string): number | undefined {
  const hours = Number(ending.slice(1, 3))
  const minutes = Number(ending.slice(4, 6))
  if (hours > 14 || minutes > 59) return undefined
  return (ending.startsWith('-') ? -1 : 1) * (hours * 60 + minutes) * 60_000
}

function instantOf(wall: number, zone: string, receivedAt: number): number {
  if (zone === 'UTC') return wall
  const before = offsetAt(zone, wall - DAY)
  const after = offsetAt(zone, wall + DAY)
  if (before === after) return wall - before
  const candidates = [wall - before, wall - after].filter((instant) => wall - instant === offsetAt(zone, instant))
  const [first = wall - before, second = first] = candidates
  return Math.abs(second - receivedAt) < Math.abs(first - receivedAt) ? second : first
}

// Asking Intl costs 20 to 50 µs. Zones change their offset on quarter hours, and a source sends moments near each other.
const QUARTER = 900_000
const MOST_QUARTERS = 10_000
const zones = new Map<string, { format: Intl.DateTimeFormat; offsets: Map<number, number> }>()

/** Milliseconds that clocks of the zone are ahead of UTC at an instant. */
function offsetAt(zone: string, instant: number): number {
  let known = zones.get(zone)
  if (known === undefined) {
    known = { format: zoneFormat(zone), offsets: new Map() }
    zones.set(zone, known)
  }
  const quarter = Math.floor(instant / QUARTER)
  let offset = known.offsets.get(quarter)
  if (offset === undefined) {
    offset = clockIn(known.format, quarter * QUARTER) - quarter * QUARTER
    if (known.offsets.size >= MOST_QUARTERS) known.offsets.clear()
    known.offsets.set(quarter, offset)
  }
  return offset
}

function zoneFormat(timeZone: string): Intl.DateTimeFormat {
  return new Intl.DateTimeFormat('en-US', {
    timeZone, hourCycle: 'h23', era: 'short',
    year: 'numeric', month: 'numeric', day: 'numeric', hour: 'numeric', minute: 'numeric', second: 'numeric',
  })
}

function clockIn(format: Intl.DateTimeFormat, instant: number): number {
  const fields = new Map(format.formatToParts(instant).map((part) => [part.type, Number(part.value)]))
  const field = (name: Intl.DateTimeFormatPartTypes): number => fields.get(name) ?? 0
  return Date.UTC(field('year'), field('month') - 1, field('day'), field('hour'), field('minute'), field('second'))
}
