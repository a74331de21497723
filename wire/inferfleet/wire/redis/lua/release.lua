-- Give a running job back to the queue: for a retry, or because its worker leaves.
-- Returns 'ok', 'cancel' or 'interrupt' (given back, and somebody asked for that), 'fenced' or 'missing'. Sent twice, the second answers 'ok' and changes nothing.
local job_key, journal_key, request_key = KEYS[1], KEYS[2], KEYS[3]
local fence = ARGV[1]
local ttl_s = ARGV[2]
local offset = ARGV[3]
local count = ARGV[4]
local tokens_entry = ARGV[5]
local queued_entry = ARGV[6]
local refund = ARGV[7] -- 1: this attempt does not count
local pause_ms = ARGV[8] -- nobody may start it earlier

-- part: never_begun
local r = redis.call('HMGET', job_key, 'state', 'fence', 'tokens', 'charged', 'cancel', 'attempt')
if not r[1] or never_begun(r[1], r[6]) then
  return 'missing'
end
if r[2] ~= fence then
  return 'fenced'
end
if r[1] ~= 'running' then
  return r[1] == 'queued' and (r[5] or 'ok') or 'fenced'
end
if tonumber(offset) > tonumber(r[3]) or redis.call('EXISTS', journal_key) == 0 then
  return 'missing'
end
local last = tonumber(offset) + tonumber(count)
if last > tonumber(r[3]) then
  redis.call('XADD', journal_key, '*', 'entry', tokens_entry)
else
  last = tonumber(r[3])
end
redis.call('XADD', journal_key, '*', 'entry', queued_entry)
-- Redis' clock, because the clocks of two workers differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', job_key, 'state', 'queued', 'tokens', last,
  'lease', now + tonumber(pause_ms), 'pause_ms', pause_ms, 'charged', math.max(0, tonumber(r[4]) - tonumber(refund)))
redis.call('HDEL', job_key, 'worker')
redis.call('EXPIRE', job_key, ttl_s)
redis.call('EXPIRE', journal_key, ttl_s)
redis.call('EXPIRE', request_key, ttl_s)
return r[5] or 'ok'
