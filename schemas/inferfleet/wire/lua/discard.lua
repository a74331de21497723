-- The broker refused the job: forget it, unless a worker has it after all.
-- KEYS record, journal
local record = redis.call('HMGET', KEYS[1], 'state', 'attempt')
if record[1] == 'queued' and record[2] == '0' then
  redis.call('DEL', KEYS[1], KEYS[2])
  return 1
end
return 0
