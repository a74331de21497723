-- A worker has a heartbeat: put it on the list, and take off those that had none for long.
-- KEYS workers
-- ARGV worker, listed_s
-- Redis' clock, because a worker whose own is ahead would take all others off.
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
return 1
