/** One test, or one check, as it is counted and told. */
export type Outcome = { title: string; state: 'passed' | 'failed' | 'skipped'; details: string }

const POINT = /^(not )?ok \d+ - (.*?)( # (?:SKIP|TODO)\b.*)?$/

/**
 * Reads ava's TAP as it comes, in pieces of any size, and tells each test once it is known in full.
 *
 * A failure is known when the indented block below it ends; a passed test at once. A todo is counted as skipped.
 */
export function tapReader(tell: (outcome: Outcome) => void): (text: string) => void {
  let rest = ''
  let open: Outcome | undefined
  return (text) => {
    const lines = (rest + text).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) {
      if (open !== undefined && line.startsWith('  ')) {
        open.details += `${line}\n`
        if (line !== '  ...') continue
      }
      if (open !== undefined) tell(open)
      open = undefined
      const point = POINT.exec(line)
      if (point === null) continue
      const [, not, title = '', mark] = point
      const state = mark !== undefined ? 'skipped' : not === undefined ? 'passed' : 'failed'
      if (state === 'failed') open = { title, state, details: '' }
      else tell({ title, state, details: '' })
    }
  }
}
