-- A webhook endpoint is in the queue at the time of its next delivery. A disabled one is in it at
-- the time when its events are dropped, 30 days later. One without events is not in it.
local disabled_keeps_ms = 30 * 24 * 3600 * 1000
local function requeue_endpoint(queue_key, endpoint_key, due_key, endpoint)
  local first = redis.call('ZRANGE', due_key, 0, 0, 'WITHSCORES')
  if first[1] and redis.call('HEXISTS', endpoint_key, 'url') == 1 then
    local disabled_ms = redis.call('HGET', endpoint_key, 'disabled_ms')
    redis.call('ZADD', queue_key, disabled_ms and disabled_ms + disabled_keeps_ms or first[2], endpoint)
  else
    redis.call('ZREM', queue_key, endpoint)
  end
end
