-- Claim a run that can go on, or whose runner has let its lease run out.
-- Returns {'claimed', how often it was claimed since it last moved on}, {'held', how long in ms},
-- {'waiting'}, {'ended'} or {'gone'}. Sent twice, the second returns the same.
local run_key = KEYS[1]
local fence = ARGV[1]
local runner = ARGV[2]
local lease_ms = ARGV[3]

-- part: rest_of_lease
local r = redis.call('HMGET', run_key, 'order', 'state', 'fence', 'lease_until', 'claims')
local state, claims = r[2], tonumber(r[5] or 0)
if not r[1] then
  return {'gone'}
end
-- Redis' clock, because the clocks of two runners differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local rest = rest_of_lease(run_key, 'lease_until', tonumber(r[4] or 0), tonumber(lease_ms), now)
if state == 'running' and r[3] == fence then
  return {'claimed', claims}
elseif state == 'running' and rest > 0 then
  return {'held', rest}
elseif state == 'waiting' then
  return {'waiting'}
elseif state ~= 'queued' and state ~= 'running' then
  return {'ended'}
end
redis.call('HSET', run_key, 'state', 'running', 'fence', fence, 'runner', runner,
  'lease_until', now + tonumber(lease_ms), 'claims', claims + 1)
return {'claimed', claims + 1}
