-- The broker refused this submission of a job: may the job be taken back?
-- Returns 'closed' (nobody else has submitted it: take it back, since nobody can join from here on),
--         'shared' (somebody else submits it, or has), 'begun' (a worker has it, or it has ended), or 'missing'.
-- Sent twice, the second answers as the first, or as it is by then.
local job_key = KEYS[1]
local call = ARGV[1]

local r = redis.call('HMGET', job_key, 'state', 'attempt', 'calls', 'closed')
if not r[1] then
  return 'missing'
end
if r[1] ~= 'queued' or tonumber(r[2]) > 0 then
  return 'begun'
end
if r[4] == call then
  return 'closed'
end
local calls = r[3] or ''
local first, last = string.find(calls, call .. ' ', 1, true)
if not first then
  return 'shared'
end
local others = string.sub(calls, 1, first - 1) .. string.sub(calls, last + 1)
redis.call('HSET', job_key, 'calls', others)
if others ~= '' then
  return 'shared'
end
redis.call('HSET', job_key, 'closed', call)
return 'closed'
