-- Cancel a batch that is not yet being finished: its runner ends it.
-- Returns its state afterwards; '' if there is no such batch.
local batch_key = KEYS[1]
local at_ms = ARGV[1]

if redis.call('HEXISTS', batch_key, 'order') == 0 then
  return ''
end
local state = redis.call('HGET', batch_key, 'state') or 'validating'
if state == 'validating' or state == 'in_progress' then
  state = 'cancelling'
  redis.call('HSET', batch_key, 'state', state, 'cancelling_ms', at_ms)
end
return state
