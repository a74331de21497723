-- Drop the undelivered events of a webhook endpoint that has been disabled for 30 days.
-- Returns how many events these were. Sent twice, the second changes nothing, and returns 0.
local endpoint_key, events_key, due_key, queue_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local endpoint = ARGV[1]
local now_ms = ARGV[2]

-- part: requeue_endpoint
local dropped = 0
local disabled_ms = redis.call('HGET', endpoint_key, 'disabled_ms')
if disabled_ms and now_ms - disabled_ms >= disabled_keeps_ms then
  dropped = redis.call('ZCARD', due_key)
  redis.call('DEL', events_key, due_key)
end
requeue_endpoint(queue_key, endpoint_key, due_key, endpoint)
return dropped
