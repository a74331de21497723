-- All jobs after which this one runs have succeeded: it waits for a worker from now on, with their texts in its request.
-- Returns {verdict, request, reply_to}.
-- Verdicts: 'ready' (the caller has to publish it with this request, which is that of the first call), 'over' (it runs,
-- has ended, or is being taken back). Sent twice, the second answers as the first.
local job_key, request_key = KEYS[1], KEYS[2]
local request = ARGV[1]
local size = ARGV[2]
local ttl_s = ARGV[3]
local call = ARGV[4] -- a submission of its own, as whoever submits it is refused no more; '' if the caller submits it

local r = redis.call('HMGET', job_key, 'state', 'attempt', 'ready', 'closed', 'calls', 'reply_to')
if r[1] ~= 'queued' or r[2] ~= '0' or r[4] then
  return {'over', '', ''}
end
local calls = r[5] or ''
if call ~= '' and not string.find(calls, call .. ' ', 1, true) then
  calls = calls .. call .. ' '
  redis.call('HSET', job_key, 'calls', calls)
end
if r[3] then
  -- It may get another message.
  redis.call('HSET', job_key, 'copied', 0)
  return {'ready', redis.call('GET', request_key) or '', r[6] or ''}
end
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('SET', request_key, request, 'EX', ttl_s)
redis.call('EXPIRE', job_key, ttl_s)
redis.call('HSET', job_key, 'ready', now, 'entered', now, 'size', size)
return {'ready', request, r[6] or ''}
