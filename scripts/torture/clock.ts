/**
 * Shifts the clock of this process by `ms`, as an administrator or a bad time server would: Date, and what performance
 * says of the time of day. Timers and performance.now() are of the monotonic clock and stay.
 */
export function shiftClock(ms: number): void {
  const Unshifted = Date
  const now = (): number => Unshifted.now() + ms

  function Shifted(this: unknown, ...parts: unknown[]): unknown {
    if (new.target === undefined) return new Unshifted(now()).toString()
    return Reflect.construct(Unshifted, parts.length === 0 ? [now()] : parts, new.target)
  }
  Shifted.prototype = Unshifted.prototype
  Object.defineProperty(Shifted.prototype, 'constructor', { value: Shifted, configurable: true, writable: true })
  Object.defineProperty(Shifted, 'length', { value: Unshifted.length })
  globalThis.Date = Object.assign(Shifted, { now, parse: Unshifted.parse, UTC: Unshifted.UTC }) as unknown as DateConstructor // as callable as the one it stands for

  const origin = performance.timeOrigin + ms
  Object.defineProperty(performance, 'timeOrigin', { get: () => origin, configurable: true })
}
