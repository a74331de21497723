-- A worker has a heartbeat: put it on the list, and take off those that had none for long.
local workers_key = KEYS[1]
local worker = ARGV[1]
local listed_s = ARGV[2]

-- Redis' clock, because a worker whose own is ahead would take all others off.
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', workers_key, now, worker)
redis.call('ZREMRANGEBYSCORE', workers_key, '-inf', now - tonumber(listed_s))
return 1
