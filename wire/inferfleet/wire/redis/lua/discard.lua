-- Forget a job that was closed, unless it has got on meanwhile.
-- KEYS record, journal
-- Returns 1 if there is no record of it any more.
local r = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'closed')
if not r[1] then
  return 1
end
if r[3] and r[1] == 'queued' and r[2] == '0' then
  redis.call('DEL', KEYS[1], KEYS[2])
  return 1
end
return 0
