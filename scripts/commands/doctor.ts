import type { Command } from 'commander'

import { type Check, checkAll } from './checks.ts'
import { say, sayJson } from './print.ts'

const CHECK_FAILED = 3

export function addDoctor(program: Command): void {
  program.command('doctor')
    .description('checks the surroundings and says what to do about each fault')
    .option('--json', 'one JSON document')
    .addHelpText('after', `
Exits with 3 when a check failed; warnings leave it at 0.

Example:
  deltapost doctor`)
    .action(async ({ json }: { json?: true }) => {
      const checks = await checkAll()
      if (json === true) sayJson(checks)
      else for (const check of checks) show(check)
      if (checks.some(({ result }) => result === 'fail')) process.exitCode = CHECK_FAILED
    })
}

function show({ name, result, told, fix }: Check): void {
  say(`${{ ok: 'ok  ', warning: 'warn', fail: 'FAIL' }[result]}  ${name}: ${told}`)
  if (fix !== undefined) say(`      Try: ${fix}`)
}
