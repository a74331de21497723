-- A turn is going to wait in its session's lane, or does: count it, unless as many wait as its pool's queue may hold.
-- KEYS pool, turns of the pool that wait in lanes
-- ARGV job, ttl_s (it counts for so long), admitted (1: no limit counts; 2: only if it is counted still)
-- Returns 1 if it is counted. Sent twice, the second finds it counted.
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local counted = redis.call('ZSCORE', KEYS[2], ARGV[1])
if ARGV[3] == '2' and not counted then
  -- It has left its lane meanwhile.
  return 0
end
local limit = ARGV[3] == '0' and redis.call('HGET', KEYS[1], 'queue_max_length')
if limit then
  -- Those whose lane has expired wait no more.
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) >= tonumber(limit) and not counted then
    return 0
  end
end
local until_ms = math.max(now + ARGV[2] * 1000, tonumber(counted or 0))
redis.call('ZADD', KEYS[2], until_ms, ARGV[1])
redis.call('EXPIRE', KEYS[2], math.max(redis.call('TTL', KEYS[2]), tonumber(ARGV[2])))
return 1
