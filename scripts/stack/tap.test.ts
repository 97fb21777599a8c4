import test from 'ava'

import { tapReader, type Outcome } from './tap.ts'

const RUN = `TAP version 13
ok 1 - a › holds # 1
#   a word of its own
not ok 2 - a › some day # TODO
not ok 3 - a › breaks
  ---
    message: 'ok 9 - not a point'
  ...
ok 4 - b › later # SKIP
not ok 5 - b.test.ts exited with a non-zero exit code: 1

1..3
# pass 1
`

for (const size of [1, 7, RUN.length]) {
  test(`every point of a run is told once, read ${size} characters at a time`, (t) => {
    const outcomes: Outcome[] = []
    const read = tapReader((outcome) => outcomes.push(outcome))
    for (let from = 0; from < RUN.length; from += size) read(RUN.slice(from, from + size))
    t.deepEqual(
      outcomes.map(({ title, state }) => [state, title]),
      [
        ['passed', 'a › holds # 1'],
        ['skipped', 'a › some day'],
        ['failed', 'a › breaks'],
        ['skipped', 'b › later'],
        ['failed', 'b.test.ts exited with a non-zero exit code: 1'],
      ],
    )
    t.regex(outcomes[2]?.details ?? '', /ok 9 - not a point/)
  })
}
