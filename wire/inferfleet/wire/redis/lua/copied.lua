-- A job has been published once more: its record stays for as long as a message may be in the queue.
-- Returns 1 if there is a record.
local job_key = KEYS[1]
local ttl_s = ARGV[1]

local r = redis.call('HMGET', job_key, 'state', 'attempt')
if not r[1] then
  return 0
end
-- By which attempt, since who finds it stalled publishes it once for each.
redis.call('HSET', job_key, 'copied', r[2] or 0)
if r[1] ~= 'queued' and r[1] ~= 'running' then
  redis.call('EXPIRE', job_key, ttl_s)
end
return 1
