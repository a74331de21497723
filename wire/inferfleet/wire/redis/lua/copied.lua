-- A job has been published once more: its record stays for as long as a message may be in the queue.
-- KEYS record
-- ARGV ttl_s
-- Returns 1 if there is a record.
local r = redis.call('HMGET', KEYS[1], 'state', 'attempt')
if not r[1] then
  return 0
end
-- By which attempt, since who finds it stalled publishes it once for each.
redis.call('HSET', KEYS[1], 'copied', r[2] or 0)
if r[1] ~= 'queued' and r[1] ~= 'running' then
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return 1
