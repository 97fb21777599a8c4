#!/usr/bin/env node
// Runs Deltapost from a clone: installs what the lock file names, then hands over to scripts/deltapost.ts on the Node
// that package.json pins. Plain JavaScript without dependencies, because it runs before there are any.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readFileSync, realpathSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const OLDEST_NODE = 18
// Garbage is collected from a young generation of 3 x 4 MB instead of 3 x 16: as much work, and 40 % less memory of relay
// and consumer with a full outbox (docs/decisions/0016). Roles started from here take it over; the Dockerfile has it too.
const NODE_FLAGS = ['--max-semi-space-size=4']
const root = dirname(dirname(realpathSync(fileURLToPath(import.meta.url))))
const [command, ...rest] = process.argv.slice(2)
// These use the development dependencies (servers, test runner); the others also run where `--omit=dev` installed.
const needsDevelopment = ['bench', 'demo', 'test', 'torture', 'up'].includes(command ?? '')

function fail(message, remedy) {
  process.stderr.write(`Error: ${message}\nTry: ${remedy}\n`)
  process.exit(1)
}

function checkNode() {
  const major = Number(process.versions.node.split('.')[0])
  if (major < OLDEST_NODE) {
    fail(`Node.js ${process.versions.node} is too old, ${OLDEST_NODE} or newer is needed to install`, 'install Node.js 20 or newer')
  }
}

function packagesOf(file) {
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).packages : undefined
}

/** The first package that the lock file names and node_modules lacks or has in another version, or undefined. */
function firstMissing() {
  const wanted = packagesOf(join(root, 'package-lock.json'))
  // npm writes this file last, so an install that was cut off leaves none.
  const installed = packagesOf(join(root, 'node_modules', '.package-lock.json'))
  if (wanted === undefined) fail('package-lock.json is missing', 'git checkout package-lock.json')
  if (installed === undefined) return 'node_modules'
  return Object.keys(wanted).find((path) => {
    if (path === '') return false
    const here = installed[path]
    if (here !== undefined) return here.version !== wanted[path].version || here.integrity !== wanted[path].integrity
    return !wanted[path].optional && !wanted[path].devOptional && (needsDevelopment || !wanted[path].dev)
  })
}

function npm(args) {
  const script = process.env.npm_execpath
  const ofNpm = script !== undefined && script.endsWith('npm-cli.js') && existsSync(script)
  const options = { cwd: root, encoding: 'utf8', maxBuffer: 64 << 20 }
  return ofNpm
    ? spawnSync(process.execPath, [script, ...args], options)
    : spawnSync('npm', args, { ...options, shell: process.platform === 'win32' })
}

function install() {
  const missing = firstMissing()
  if (missing === undefined) return
  const begun = Date.now()
  process.stderr.write(`installing packages (npm ci, about a minute the first time; missing: ${missing})\n`)
  const done = npm(['ci', '--include=dev', '--no-audit', '--no-fund'])
  if (done.status !== 0) {
    process.stderr.write(`${done.stdout ?? ''}${done.stderr ?? ''}`)
    fail(`npm ci failed${done.error ? `: ${done.error.message}` : ''}`, 'npm ci')
  }
  process.stderr.write(`installed in ${Math.round((Date.now() - begun) / 1000)} s\n`)
}

/** The program file if it starts and is the pinned version; a file that is there may still be for another platform. */
function works(file, version) {
  if (!existsSync(file)) return false
  return spawnSync(file, ['--version'], { encoding: 'utf8' }).stdout?.trim() === `v${version}`
}

function pinnedNode() {
  const version = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).dependencies.node
  const folder = join(root, 'node_modules', 'node')
  const platform = process.platform === 'win32' ? 'win' : process.platform
  const names = [`node-${platform}-${process.arch}`, `node-bin-${platform}-${process.arch}`]
  const program = process.platform === 'win32' ? 'node.exe' : 'node'
  const places = [
    join(folder, 'bin', program),
    ...names.map((name) => join(folder, 'node_modules', name, 'bin', program)),
    ...names.map((name) => join(root, 'node_modules', name, 'bin', program)),
  ]
  if (process.versions.node === version && existsSync(process.execPath)) return process.execPath
  const found = places.find((place) => works(place, version))
  if (found !== undefined) return found
  // Install scripts may be switched off (ignore-scripts) or not approved: then the package is there without its program.
  process.stderr.write(`fetching Node.js ${version} (its install script did not run)\n`)
  const done = spawnSync(process.execPath, ['installArchSpecificPackage.js'], { cwd: folder, encoding: 'utf8' })
  const fetched = places.find((place) => works(place, version))
  if (fetched !== undefined) return fetched
  process.stderr.write(`${done.stdout ?? ''}${done.stderr ?? ''}`)
  return fail(`there is no Node.js ${version} for ${process.platform} ${process.arch} in node_modules/node`, 'npm rebuild node --foreground-scripts')
}

function run(node) {
  const script = command === 'test' ? 'test.ts' : 'deltapost.ts'
  const args = command === 'test' ? rest : process.argv.slice(2)
  const bin = join(root, 'node_modules', '.bin')
  const separator = process.platform === 'win32' ? ';' : ':'
  const child = spawn(node, [...NODE_FLAGS, join(root, 'scripts', script), ...args], {
    stdio: 'inherit',
    env: { ...process.env, PATH: `${bin}${separator}${process.env.PATH ?? ''}` },
  })
  // Ctrl-C at a terminal reaches the child by itself; a signal sent to this process alone does not.
  process.on('SIGINT', () => {
    if (!process.stdin.isTTY) child.kill('SIGINT')
  })
  process.on('SIGTERM', () => child.kill('SIGTERM'))
  process.on('SIGHUP', () => child.kill('SIGHUP'))
  child.on('error', (error) => fail(`${node} does not start: ${error.message}`, 'npm ci'))
  child.on('exit', (code, signal) => {
    if (signal === null) process.exit(code)
    process.removeAllListeners(signal)
    process.kill(process.pid, signal)
  })
}

checkNode()
install()
run(pinnedNode())
