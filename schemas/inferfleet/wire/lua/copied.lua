-- A job has been published once more: its record stays for as long as a message may be in the queue.
-- KEYS record
-- ARGV ttl_s
-- Returns 1 if there is a record.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  return 0
end
redis.call('HSET', KEYS[1], 'copied', 1)
if state ~= 'queued' and state ~= 'running' then
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return 1
