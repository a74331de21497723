-- Remove an endpoint, and what was to be delivered to it.
-- Returns 1, or 0 if the tenant has no such endpoint. Sent twice, the second changes nothing, but answers 0.
local endpoints_key, endpoint_key, events_key, due_key, queue_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local endpoint = ARGV[1]
local tenant = ARGV[2]

if redis.call('HGET', endpoint_key, 'tenant') ~= tenant then
  return 0
end
redis.call('ZREM', endpoints_key, endpoint)
redis.call('ZREM', queue_key, endpoint)
redis.call('DEL', endpoint_key, events_key, due_key)
return 1
