-- Let an event be delivered to an endpoint.
-- Returns 'entered', 'unwanted' (the endpoint is gone, disabled, or does not want such events), or 'full'.
-- Sent twice, the second changes nothing, unless the event has been delivered in between: it is delivered again then.
local endpoint_key, events_key, due_key, queue_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local endpoint = ARGV[1]
local event_id = ARGV[2]
local event_type = ARGV[3]
local event = ARGV[4]
local now_ms = ARGV[5]
local most = ARGV[6] -- undelivered events of an endpoint

-- part: requeue_endpoint
local e = redis.call('HMGET', endpoint_key, 'event_types', 'disabled_ms')
if not e[1] or e[2] or not string.find(' ' .. e[1] .. ' ', ' ' .. event_type .. ' ', 1, true) then
  return 'unwanted'
end
if redis.call('HEXISTS', events_key, event_id) == 1 then
  return 'entered'
end
if redis.call('ZCARD', due_key) >= tonumber(most) then
  return 'full'
end
-- In front of the event: how often it was tried.
redis.call('HSET', events_key, event_id, '0 ' .. event)
redis.call('ZADD', due_key, now_ms, event_id)
requeue_endpoint(queue_key, endpoint_key, due_key, endpoint)
return 'entered'
