/** What `npm test` hands to the tests; a test file run by ava alone gets an error that says so. */
export function given(name: `DELTAPOST_TEST_${string}`): string {
  const value = process.env[name]
  if (value === undefined) throw new Error(`${name} is not set: run tests with npm test -- FILE, which starts the servers`)
  return value
}
