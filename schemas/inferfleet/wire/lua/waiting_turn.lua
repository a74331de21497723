-- A turn is going to wait in its session's lane: count it, unless as many wait as its pool's queue may hold.
-- KEYS pool, turns of the pool that wait in lanes
-- ARGV job, ttl_s (of a lane), admitted (1: no limit counts)
-- Returns 1 if it is counted. Sent twice, the second finds it counted.
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local limit = ARGV[3] == '0' and redis.call('HGET', KEYS[1], 'queue_max_length')
if limit then
  -- Those whose lane has expired wait no more.
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) >= tonumber(limit) and not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
    return 0
  end
end
redis.call('ZADD', KEYS[2], now + ARGV[2] * 1000, ARGV[1])
redis.call('EXPIRE', KEYS[2], math.max(redis.call('TTL', KEYS[2]), tonumber(ARGV[2])))
return 1
