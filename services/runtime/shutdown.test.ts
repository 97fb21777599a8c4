import { type ChildProcess, spawn } from 'node:child_process'
import { join } from 'node:path'
import test from 'ava'

const MODULES = [join(import.meta.dirname, 'shutdown.ts'), join(import.meta.dirname, 'log.ts')].map((path) => JSON.stringify(path))

const children = new Set<ChildProcess>()
test.after.always(() => { for (const child of children) child.kill('SIGKILL') })

/** A process that says `ready`, and whose body runs with `signal` in scope; gives its exit code and output. */
function start(body: string, limit: number, stdio: 'ipc' | 'ignore' = 'ignore'): { child: ChildProcess; ready: Promise<void>; ended: Promise<{ code: number | null; output: string }> } {
  const script = `
    const { stopSignal } = await import(${MODULES[0]})
    const { openLog } = await import(${MODULES[1]})
    const signal = stopSignal(openLog('test', 'info'), ${limit})
    console.log('ready')
    ${body}`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit', stdio] })
  children.add(child)
  let output = ''
  const ready = Promise.withResolvers<void>()
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    output += text
    if (output.includes('ready')) ready.resolve()
  })
  // Not 'close', which Node does not emit after disconnect().
  const exited = new Promise<number | null>((resolve) => child.once('exit', resolve))
  const told = new Promise<void>((resolve) => child.stdout?.once('end', resolve))
  const ended = Promise.all([exited, told]).then(([code]) => ({ code, output }))
  return { child, ready: ready.promise, ended }
}

const UNTIL_ASKED = `const alive = setInterval(() => {}, 1000); signal.addEventListener('abort', () => { console.log('finishing'); clearInterval(alive) })`
const FOR_EVER = `setInterval(() => {}, 1000); signal.addEventListener('abort', () => console.log('finishing'))`

for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  test(`the first ${name} stops the loops, and the process ends with 0 when they have`, async (t) => {
    const { child, ready, ended } = start(UNTIL_ASKED, 5_000)
    await ready
    child.kill(name)
    const { code, output } = await ended
    t.is(code, 0)
    t.true(output.includes('finishing'))
  })
}

test('what is not done within the limit is ended with code 1', async (t) => {
  const { child, ready, ended } = start(FOR_EVER, 100)
  await ready
  child.kill('SIGTERM')
  const { code, output } = await ended
  t.is(code, 1)
  t.regex(output, /not done within the limit/)
})

test('a second request ends the process at once, but one press of Ctrl-C that arrives twice does not', async (t) => {
  const { child, ready, ended } = start(`${FOR_EVER}
    signal.addEventListener('abort', () => {
      process.kill(process.pid, 'SIGINT')
      setTimeout(() => { console.log('still finishing'); process.kill(process.pid, 'SIGINT') }, 700)
    })`, 60_000)
  await ready
  child.kill('SIGINT')
  const { code, output } = await ended
  t.is(code, 1)
  t.is(output.match(/"msg":"stopping"/g)?.length, 1)
  t.true(output.includes('still finishing'), 'ended by the first press')
  t.regex(output, /asked a second time/)
})

test('an error or a rejection that nobody caught is logged and ends the process with 1', async (t) => {
  for (const body of [`setTimeout(() => { throw new Error('broken') })`, `void Promise.reject(new Error('broken')); ${FOR_EVER}`]) {
    const { code, output } = await start(body, 5_000).ended
    t.is(code, 1)
    t.regex(output, /"level":60.*broken/)
  }
})

test('a role stops when the process that started it is gone', async (t) => {
  const { child, ready, ended } = start(UNTIL_ASKED, 5_000, 'ipc')
  await ready
  child.disconnect()
  const { code, output } = await ended
  t.is(code, 0)
  t.regex(output, /is gone/)
})
