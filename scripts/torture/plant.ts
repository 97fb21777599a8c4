import { readFileSync } from 'node:fs'
import { registerHooks } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** A change of one source file for a process of a campaign. `find` stands in `file` exactly once. */
export type Plant = { name: string; file: string; find: string; replace: string }

const ROOT = join(import.meta.dirname, '..', '..')

/** The source with the plants of its file in it. Throws where one has no place, or more than one: the source has moved on. */
export function planted(file: string, source: string, plants: readonly Plant[]): string {
  let text = source
  for (const { name, find, replace } of plants.filter((plant) => plant.file === file)) {
    const parts = text.split(find)
    if (parts.length !== 2) throw new Error(`the plant "${name}" has ${parts.length - 1} places in ${file}, not one`)
    text = parts.join(replace)
  }
  return text
}

/** The source of the working tree with these plants, to see that each has its place. */
export function plantedFile(file: string, plants: readonly Plant[]): string {
  return planted(file, readFileSync(join(ROOT, file), 'utf8'), plants)
}

/** Plants into the modules of this process that are loaded from now on. Nothing of it is in the files that ship. */
export function plantAll(plants: readonly Plant[]): void {
  const files = new Set(plants.map(({ file }) => file))
  registerHooks({
    load(url, context, nextLoad) {
      const loaded = nextLoad(url, context)
      const file = url.startsWith('file:') ? fileURLToPath(url).slice(ROOT.length + 1).replaceAll('\\', '/') : ''
      if (!files.has(file)) return loaded
      const source = typeof loaded.source === 'string' ? loaded.source : Buffer.from(loaded.source as Uint8Array).toString('utf8')
      return { ...loaded, source: planted(file, source, plants) }
    },
  })
}
