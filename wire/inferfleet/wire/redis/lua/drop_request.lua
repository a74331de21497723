-- Delete the request of a job that has ended. Sent again after a failover, it spares one whose end was forgotten.
-- Returns 1 if there was one.
local job_key, request_key = KEYS[1], KEYS[2]

local state = redis.call('HGET', job_key, 'state')
if state and state ~= 'queued' and state ~= 'running' then
  return redis.call('DEL', request_key)
end
return 0
