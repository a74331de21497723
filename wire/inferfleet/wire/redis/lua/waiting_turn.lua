-- A turn is going to wait in its session's lane, or does: count it, unless as many wait as its pool's queue may hold.
-- Returns 1 if it is counted. Sent twice, the second finds it counted.
local pool_key, waiting_turns_key = KEYS[1], KEYS[2]
local job = ARGV[1]
local ttl_s = ARGV[2] -- it counts for so long
local admitted = ARGV[3] -- 1: no limit counts; 2: only if it is counted still

-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local counted = redis.call('ZSCORE', waiting_turns_key, job)
if admitted == '2' and not counted then
  -- It has left its lane meanwhile.
  return 0
end
local limit = admitted == '0' and redis.call('HGET', pool_key, 'queue_max_length')
if limit then
  -- Those whose lane has expired wait no more.
  redis.call('ZREMRANGEBYSCORE', waiting_turns_key, '-inf', now)
  if redis.call('ZCARD', waiting_turns_key) >= tonumber(limit) and not counted then
    return 0
  end
end
local until_ms = math.max(now + ttl_s * 1000, tonumber(counted or 0))
redis.call('ZADD', waiting_turns_key, until_ms, job)
redis.call('EXPIRE', waiting_turns_key, math.max(redis.call('TTL', waiting_turns_key), tonumber(ttl_s)))
return 1
