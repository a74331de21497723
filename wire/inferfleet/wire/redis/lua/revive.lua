-- A job has lost its message, as far as the caller has seen, or is promoted: let it be published again, unless it
-- has got on since.
-- Returns {verdict, request, reply_to}.
-- Verdicts: 'revived' (the caller has to publish it), 'changed', 'unkept' (Redis does not have its request).
-- Sent twice, the second answers as the first.
local job_key, journal_key, request_key = KEYS[1], KEYS[2], KEYS[3]
local seen = ARGV[1] -- the record's state, attempt, lease and time of the last revival, as the caller read them
local call = ARGV[2] -- unique to this call
local queued_entry = ARGV[3]
local promoted = ARGV[4] -- '1' if the job has its message still, and gets another one that comes before others

local r = redis.call('HMGET', job_key, 'state', 'attempt', 'lease', 'republished', 'closed', 'reply_to', 'calls', 'reviver')
if not r[1] then
  return {'changed', '', ''}
end
local again = r[8] == call
if not again and table.concat({r[1], r[2], r[3] or '', r[4] or ''}, ' ') ~= seen then
  return {'changed', '', ''}
end
local waits = r[1] == 'queued' and r[2] == '0'
if waits and r[5] then
  -- Its submission was refused, and it is being taken back.
  return {'changed', '', ''}
end
local request = redis.call('GET', request_key)
if not request then
  return {'unkept', '', ''}
end
if not again then
  -- Redis' clock, because the clocks of two machines differ.
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  redis.call('HSET', job_key, 'republished', now, 'reviver', call, 'copied', r[2])
  if promoted == '1' then
    redis.call('HSET', job_key, 'promoted', 1)
  else
    -- The message of its promotion is lost, too.
    redis.call('HDEL', job_key, 'promoted')
  end
  if waits then
    -- A submission of its own: that of its producer, should it be refused still, cannot take the job back.
    redis.call('HSET', job_key, 'calls', (r[7] or '') .. call .. ' ')
  end
  redis.call('XADD', journal_key, '*', 'entry', queued_entry)
end
return {'revived', request, r[6] or ''}
