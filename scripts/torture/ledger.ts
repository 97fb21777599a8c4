import { open } from 'node:fs/promises'

/** What was sent and answered, on disk before anything follows from it. */
export type Ledger = {
  /** Resolves when the line is on disk. */
  write: (entry: Readonly<Record<string, unknown>>) => Promise<void>
  close: () => Promise<void>
}

/**
 * A file of JSON lines. Lines that come while a sync runs go together into the next one, so that a hundred sessions cost
 * no more syncs than one.
 */
export async function openLedger(path: string): Promise<Ledger> {
  const file = await open(path, 'w')
  let lines: string[] = []
  let syncing = Promise.resolve()
  let next: Promise<void> | undefined

  async function sync(): Promise<void> {
    next = undefined
    const text = lines.join('')
    lines = []
    await file.appendFile(text)
    await file.datasync()
  }

  return {
    write(entry) {
      lines.push(`${JSON.stringify(entry)}\n`)
      if (next === undefined) {
        next = syncing.then(sync)
        syncing = next
      }
      return next
    },
    async close() {
      await syncing
      await file.close()
    },
  }
}
