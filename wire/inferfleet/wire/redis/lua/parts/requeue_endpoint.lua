-- A webhook endpoint is in the queue at the time of its next delivery, unless it is disabled or has no events.
local function requeue_endpoint(queue_key, endpoint_key, due_key, endpoint)
  local first = redis.call('ZRANGE', due_key, 0, 0, 'WITHSCORES')
  if first[1] and redis.call('HEXISTS', endpoint_key, 'url') == 1 and redis.call('HEXISTS', endpoint_key, 'disabled_ms') == 0 then
    redis.call('ZADD', queue_key, first[2], endpoint)
  else
    redis.call('ZREM', queue_key, endpoint)
  end
end
