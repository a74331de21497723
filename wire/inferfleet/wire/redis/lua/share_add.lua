-- A worker adds jobs of a tenant that have ended there to what the tenant has been served.
-- Sent twice, the second adds nothing.
local shares_key, preferred_key, call_key = KEYS[1], KEYS[2], KEYS[3]
local tenant = ARGV[1]
local number = ARGV[2] -- of the call; each later one of the worker has a higher one
local call_ttl_s = ARGV[3] -- how long it is known that this call was made
local work = ARGV[4]
local half_life_ms = ARGV[5]
local ttl_s = ARGV[6]
-- The rest of ARGV: the jobs.

if tonumber(redis.call('GET', call_key) or -1) >= tonumber(number) then
  return 0
end
redis.call('SET', call_key, number, 'EX', call_ttl_s)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local count = 0
for i = 7, #ARGV do
  count = count + 1
  redis.call('ZREM', preferred_key, ARGV[i])
end
local stored = redis.call('HGET', shares_key, tenant) or '0 0 0 1 0'
local has_work, has_jobs, _, weight, at = string.match(stored, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
local left = 0.5 ^ (math.max(now - tonumber(at), 0) / tonumber(half_life_ms))
redis.call('HSET', shares_key, tenant, string.format('%.3f %.6f %d %.3f %d',
  has_work * left + tonumber(work), has_jobs * left + count, redis.call('ZCARD', preferred_key), weight, now))
redis.call('EXPIRE', shares_key, ttl_s)
return 1
