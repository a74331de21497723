-- Reserve places for jobs among those of an API key that have not ended, or for a batch among those of a tenant, if there
-- are enough for all of them.
-- Returns {} if they are reserved, else the jobs that hold places, and when each got its own, in ms: the oldest first.
-- Sent twice, the second finds the places of the first.
local places_key = KEYS[1]
local most = ARGV[1]
local ttl_s = ARGV[2]
local last = ARGV[3] -- up to which of them to return; -1: all
-- The rest of ARGV: the jobs.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local needed = redis.call('ZCARD', places_key)
for i = 4, #ARGV do
  if not redis.call('ZSCORE', places_key, ARGV[i]) then
    needed = needed + 1
  end
end
if needed > tonumber(most) then
  return redis.call('ZRANGE', places_key, 0, last, 'WITHSCORES')
end
for i = 4, #ARGV do
  redis.call('ZADD', places_key, 'NX', now, ARGV[i])
end
redis.call('EXPIRE', places_key, ttl_s)
return {}
