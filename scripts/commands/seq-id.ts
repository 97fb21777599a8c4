import { InvalidArgumentError } from 'commander'

/** A number as the listener answers it. */
export function seqId(text: string): string {
  if (!/^[1-9]\d{0,18}$/.test(text)) throw new InvalidArgumentError('a seq_id is a number from 1')
  return text
}
