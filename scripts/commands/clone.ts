import { DeltapostError } from '../../outbox/errors.ts'

/**
 * Loads what is there only in a clone with its development packages: servers, bench and demo are left out of the image.
 * Rejects with CLONE_NEEDED where it is not.
 */
export async function inClone<T>(command: string, load: () => Promise<T>): Promise<T> {
  try {
    return await load()
  } catch (cause) {
    if (!(cause instanceof Error && 'code' in cause && cause.code === 'ERR_MODULE_NOT_FOUND')) throw cause
    throw new DeltapostError('CLONE_NEEDED', `${command} starts servers of its own, which an image or an installation without development packages lacks: it needs a clone`,
      `npm run ${command} in a clone; here deltapost serve, migrate, status and the others work`, { cause })
  }
}
