-- How a job stands. Changes nothing.
-- Returns its state, 'missing', or 'stalled': an attempt has begun it, and for longer than its lease nobody has held
-- it. Its message may wait in the queue; or it was acked, and Redis has lost the end of the job since.
local job_key = KEYS[1]

local r = redis.call('HMGET', job_key, 'state', 'attempt', 'lease', 'lease_ms')
if not r[1] then
  return 'missing'
end
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local begun = r[1] == 'running' or (r[1] == 'queued' and tonumber(r[2]) > 0)
if begun and tonumber(r[3] or 0) + tonumber(r[4] or 0) < now then
  return 'stalled'
end
return r[1]
