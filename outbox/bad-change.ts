import { DeltapostError } from './errors.ts'

/** Why bytes are no change. The words are kept in rejected_request and answered to the sender. */
export type Reason =
  | 'empty_body' | 'invalid_utf8' | 'truncated' | 'json_syntax' | 'too_deep' | 'not_object' | 'duplicate_key'
  | 'missing_field' | 'bad_time' | 'unknown_operation' | 'bad_name' | 'bad_data' | 'no_schema' | 'wrong_direction'
  | 'nul_character' | 'lone_surrogate' | 'too_large' | 'incomplete_body' | 'refused_by_database' | 'idempotency_conflict'
  | 'older_than_horizon'

/** Bytes that are no change. `detail` holds names and places, never a value. */
export class BadChange extends DeltapostError {
  readonly reason: Reason
  readonly detail: string

  constructor(reason: Reason, detail: string) {
    super('BAD_CHANGE', `${reason}: ${detail}`, 'deltapost rejected show ID, mend the body, then deltapost rejected retry ID --file BODY')
    this.reason = reason
    this.detail = detail
  }
}
