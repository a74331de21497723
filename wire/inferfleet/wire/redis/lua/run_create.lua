-- Record a run of an agent, unless there is one of this id.
-- Returns the order of the run that there is; '' if it was recorded.
local run_key = KEYS[1]
local order = ARGV[1]
local tenant = ARGV[2] -- also in the order, which a list does not read for each run
local ttl_s = ARGV[3]

local known = redis.call('HGET', run_key, 'order')
if known then
  return known
end
redis.call('HSET', run_key, 'order', order, 'tenant', tenant, 'state', 'queued')
redis.call('EXPIRE', run_key, ttl_s)
return ''
