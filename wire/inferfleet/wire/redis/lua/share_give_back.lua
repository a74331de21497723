-- A job gives up its preferred place: it was refused, has moved, or is recorded with another priority.
-- Sent twice, the second finds no place, or one that the job got since, and keeps it.
local shares_key, preferred_key = KEYS[1], KEYS[2]
local tenant = ARGV[1]
local job = ARGV[2]
local since_ms = ARGV[3] -- when it got the place, as the caller read it

local score = redis.call('ZSCORE', preferred_key, job)
if not score or tonumber(score) ~= tonumber(since_ms) then
  return 0
end
redis.call('ZREM', preferred_key, job)
local work, jobs = string.match(redis.call('HGET', shares_key, tenant) or '', '^(%S+) (%S+) ')
if work and tonumber(work) == 0 and tonumber(jobs) == 0 and redis.call('ZCARD', preferred_key) == 0 then
  -- Nothing is known of the tenant. The pool may not even exist: then nothing is left of it.
  redis.call('HDEL', shares_key, tenant)
  local left = redis.call('HGETALL', shares_key)
  if #left == 2 and left[1] == '' then
    redis.call('HDEL', shares_key, '')
  end
end
return 1
