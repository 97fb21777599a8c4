/**
 * An error an operator can act on.
 *
 * `code` is stable and listed in docs/errors.md; `remedy` is what to type or change next; `retry` says whether the same
 * attempt can succeed later without anyone doing anything (an environment that is away), which the loops ask.
 */
export class DeltapostError extends Error {
  readonly code: string
  readonly remedy: string
  readonly retry: boolean

  constructor(code: string, message: string, remedy: string, options: { cause?: unknown; retry?: boolean } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'DeltapostError'
    this.code = code
    this.remedy = remedy
    this.retry = options.retry ?? false
  }
}
