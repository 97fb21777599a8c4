export default {
  files: ['outbox/**/*.test.ts', 'services/**/*.test.ts', 'scripts/**/*.test.ts', 'test/**/*.test.ts'],
  extensions: ['ts'],
  // A process per file: kafkajs and servers under test hold sockets and timers, and end with it.
  workerThreads: false,
  // Without any test ending for so long; one that restarts a broker takes ten seconds on a busy machine.
  timeout: '120s',
  concurrency: 2,
}
