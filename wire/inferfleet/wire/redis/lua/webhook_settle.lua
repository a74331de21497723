-- A delivery was tried: forget it, or let it be tried again; and disable an endpoint that accepts nothing.
-- Returns 'settled', 'disabled' (this failure has disabled the endpoint), or 'past' (the delivery was settled before).
-- Sent twice, the second changes nothing and answers 'past', or 'disabled' as the first.
local endpoint_key, events_key, due_key, queue_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local endpoint = ARGV[1]
local event_id = ARGV[2]
local tried = ARGV[3] -- how often it had been tried before
local failure = ARGV[4] -- '' if the endpoint has accepted it
local now_ms = ARGV[5]
local retry_ms = ARGV[6] -- when to try it again; '' for never
local disable_after_ms = ARGV[7] -- for how long an endpoint may accept nothing

-- part: requeue_endpoint
local held = redis.call('HGET', events_key, event_id)
local held_tried, event = string.match(held or '', '^(%d+) (.*)$')
if not held_tried or failure ~= '' and held_tried ~= tried then
  -- Sent again by whoever has disabled the endpoint?
  local ours = failure ~= '' and redis.call('HGET', endpoint_key, 'disabled_ms') == now_ms
  return ours and 'disabled' or 'past'
end
local disabled = false
if failure == '' then
  redis.call('HDEL', endpoint_key, 'failing_ms', 'failure')
else
  redis.call('HSETNX', endpoint_key, 'failing_ms', now_ms)
  redis.call('HSET', endpoint_key, 'failure', failure)
  local lasts = tonumber(now_ms) - tonumber(redis.call('HGET', endpoint_key, 'failing_ms'))
  if lasts >= tonumber(disable_after_ms) and redis.call('HEXISTS', endpoint_key, 'disabled_ms') == 0 then
    redis.call('HSET', endpoint_key, 'disabled_ms', now_ms)
    disabled = true
  end
end
if failure == '' or retry_ms == '' then
  redis.call('HDEL', events_key, event_id)
  redis.call('ZREM', due_key, event_id)
  if not disabled and redis.call('ZCARD', due_key) == 0 then
    -- Nothing is left that it could accept. So it fails from its next failure on, not since this one.
    redis.call('HDEL', endpoint_key, 'failing_ms', 'failure')
  end
else
  redis.call('HSET', events_key, event_id, (tonumber(tried) + 1) .. ' ' .. event)
  redis.call('ZADD', due_key, retry_ms, event_id)
end
requeue_endpoint(queue_key, endpoint_key, due_key, endpoint)
return disabled and 'disabled' or 'settled'
