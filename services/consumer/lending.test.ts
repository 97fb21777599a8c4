import test from 'ava'
import { openSlot } from '../runtime/slot.ts'
import { openLending } from './lending.ts'

test('a slot is lent to one call at a time, in the order in which they came', async (t) => {
  const slot = openSlot({ url: 'postgres://not-used', name: 'test' })
  t.teardown(() => slot.close())
  const lending = openLending([slot])
  const order: string[] = []
  const call = async (name: string): Promise<void> => {
    const mine = await lending.take()
    order.push(`${name} begins`)
    await new Promise((resolve) => setImmediate(resolve))
    order.push(`${name} ends`)
    lending.give(mine)
  }
  await Promise.all([call('first'), call('second'), call('third')])
  t.deepEqual(order, ['first begins', 'first ends', 'second begins', 'second ends', 'third begins', 'third ends'])
})
