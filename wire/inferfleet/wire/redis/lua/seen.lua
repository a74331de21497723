-- Something is there: put it on its list, and take off what was not seen for long.
local list_key = KEYS[1]
local member = ARGV[1]
local listed_s = ARGV[2]

-- Redis' clock, because a process whose own is ahead would take all others off.
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', list_key, now, member)
redis.call('ZREMRANGEBYSCORE', list_key, '-inf', now - tonumber(listed_s))
return 1
