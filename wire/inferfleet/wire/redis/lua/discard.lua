-- Forget a job that was closed, unless it has got on meanwhile.
-- Returns 1 if there is no record of it any more.
local job_key, journal_key, request_key = KEYS[1], KEYS[2], KEYS[3]

local r = redis.call('HMGET', job_key, 'state', 'attempt', 'closed')
if not r[1] then
  return 1
end
if r[3] and r[1] == 'queued' and r[2] == '0' then
  redis.call('DEL', job_key, journal_key, request_key)
  return 1
end
return 0
