import test from 'ava'
import fc from 'fast-check'
import { microsToTimestamp, sourceMicros } from './time.ts'

const noon = Date.UTC(2019, 8, 16, 12)

function read(text: string, zone = 'UTC', receivedAt = noon): string | undefined {
  const micros = sourceMicros(text, zone, receivedAt)
  return micros === undefined ? undefined : microsToTimestamp(micros)
}

test('microseconds come without leading zeros: .5 < .42 < .12345', (t) => {
  t.is(read('2019-09-20T09:00:01.5Z'), '2019-09-20 09:00:01.000005+00')
  t.is(read('2019-09-20T09:00:01.42Z'), '2019-09-20 09:00:01.000042+00')
  t.is(read('2019-09-20T09:00:01.12345Z'), '2019-09-20 09:00:01.012345+00')
  t.is(read('2019-09-20T09:00:01.511189Z'), '2019-09-20 09:00:01.511189+00')
  t.is(read('2019-09-20T09:00:01.0Z'), '2019-09-20 09:00:01.000000+00')
  t.is(read('2019-09-20T09:00:01Z'), '2019-09-20 09:00:01.000000+00')
})

test('the Z is local time of the source', (t) => {
  t.is(read('2019-09-16T06:09:30.5Z', 'America/New_York'), '2019-09-16 10:09:30.000005+00')
  t.is(read('2019-12-16T06:09:30.5Z', 'America/New_York'), '2019-12-16 11:09:30.000005+00')
  t.is(read('2019-09-16T06:09:30.5Z', 'Asia/Kolkata'), '2019-09-16 00:39:30.000005+00')
})

test('a real offset counts, and its fraction is one of a second', (t) => {
  t.is(read('2019-09-16T06:09:30.5+02:00', 'America/New_York'), '2019-09-16 04:09:30.500000+00')
  t.is(read('2019-09-16T06:09:30-04:30'), '2019-09-16 10:39:30.000000+00')
})

test('in the repeated hour the candidate nearest to the receipt is taken', (t) => {
  const [zone, text] = ['America/New_York', '2019-11-03T01:30:00.7Z']
  t.is(read(text, zone, Date.UTC(2019, 10, 3, 5, 30, 1)), '2019-11-03 05:30:00.000007+00')
  t.is(read(text, zone, Date.UTC(2019, 10, 3, 6, 30, 1)), '2019-11-03 06:30:00.000007+00')
  t.is(read('2019-11-03T00:30:00.7Z', zone), '2019-11-03 04:30:00.000007+00')
  t.is(read('2019-11-03T02:30:00.7Z', zone), '2019-11-03 07:30:00.000007+00')
})

test('in the hour left out time goes on as the clock would', (t) => {
  t.is(read('2019-03-10T02:30:00.7Z', 'America/New_York'), '2019-03-10 07:30:00.000007+00')
  t.is(read('2019-03-10T01:30:00.7Z', 'America/New_York'), '2019-03-10 06:30:00.000007+00')
  t.is(read('2019-03-10T03:30:00.7Z', 'America/New_York'), '2019-03-10 07:30:00.000007+00')
})

test('every moment of a year is found again from its local time, received soon after', (t) => {
  const zones = fc.constantFrom('America/New_York', 'Europe/Berlin', 'Australia/Lord_Howe', 'Asia/Kathmandu', 'Africa/Casablanca', 'UTC')
  fc.assert(fc.property(zones, fc.integer({ min: Date.UTC(2019, 0, 2) / 1000, max: Date.UTC(2020, 0, 2) / 1000 }), fc.nat(999_999), (zone, second, micros) => {
    const parts = new Map(new Intl.DateTimeFormat('en-US', { timeZone: zone, hourCycle: 'h23', year: 'numeric', month: '2-digit', day: '2-digit', hour: '2-digit', minute: '2-digit', second: '2-digit' })
      .formatToParts(second * 1000).map(({ type, value }) => [type, value]))
    const text = `${parts.get('year')}-${parts.get('month')}-${parts.get('day')}T${parts.get('hour')}:${parts.get('minute')}:${parts.get('second')}.${micros}Z`
    t.is(sourceMicros(text, zone, second * 1000 + 2_000), BigInt(second) * 1_000_000n + BigInt(micros), text)
  }), { numRuns: 300 })
})

for (const text of ['', 'now', '2019-09-16', '2019-09-16 10:00:00.5Z', '2019-13-16T10:00:00.5Z', '2019-02-29T10:00:00.5Z', '2019-09-16T24:00:00.5Z', '2019-09-16T10:60:00.5Z', '2019-09-16T10:00:00.1234567Z', '2019-09-16T10:00:00.Z', '2019-09-16T10:00:00.5', '2019-09-16T10:00:00.5z', '2019-09-16T10:00:00.5+25:00', '2019-09-16T10:00:00.5Z\n', '0001-01-01T00:00:00.0Z', '２019-09-16T10:00:00.5Z']) {
  test(`no TIME: ${JSON.stringify(text)}`, (t) => {
    t.is(sourceMicros(text, 'UTC', noon), undefined)
  })
}
