-- Record a run of an agent, unless there is one of this id.
-- Returns the order of the run that there is; '' if it was recorded.
local run_key, steps_key = KEYS[1], KEYS[2]
local order = ARGV[1]
local agent = ARGV[2] -- these three are also in the order, which a list does not read for each run
local tenant = ARGV[3]
local created_ms = ARGV[4]
local ttl_s = ARGV[5]
-- The rest of ARGV: steps that it begins with, none unless it replays another run.

local known = redis.call('HGET', run_key, 'order')
if known then
  return known
end
redis.call('HSET', run_key, 'order', order, 'agent', agent, 'tenant', tenant, 'created_ms', created_ms,
  'state', 'queued')
redis.call('EXPIRE', run_key, ttl_s)
for place = 6, #ARGV do
  redis.call('RPUSH', steps_key, ARGV[place])
end
redis.call('EXPIRE', steps_key, ttl_s)
return ''
