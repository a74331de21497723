-- Change a batch, and renew the lease of its runner. A batch that is being cancelled can only become cancelled, and
-- one that has ended does not change.
-- Returns its state afterwards; '' if another runner has the batch. Sent twice, the second changes nothing.
local batch_key = KEYS[1]
local runner = ARGV[1]
local lease_ms = ARGV[2]
local new_state = ARGV[3] -- '' if only the fields change
local at_ms = ARGV[4]
-- ARGV: fields and their values.

local r = redis.call('HMGET', batch_key, 'runner', 'state')
if r[1] ~= runner then
  return ''
end
local state = r[2] or 'validating'
local ends = {completed = true, failed = true, expired = true, cancelled = true}
if ends[state] or (state == 'cancelling' and new_state ~= '' and new_state ~= 'cancelled') then
  new_state = state
else
  for i = 5, #ARGV, 2 do
    redis.call('HSET', batch_key, ARGV[i], ARGV[i + 1])
  end
end
if new_state ~= '' and new_state ~= state then
  redis.call('HSET', batch_key, 'state', new_state, new_state .. '_ms', at_ms)
  state = new_state
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', batch_key, 'lease_until', now + tonumber(lease_ms))
return state
