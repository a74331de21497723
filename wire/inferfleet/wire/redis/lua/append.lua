-- Append generated tokens to the journal and renew the lease. With a count of 0, only renew.
-- Returns 'ok', 'cancel' or 'interrupt' (written, and somebody asked for that), 'fenced' or 'missing'.
-- Sent twice, the second changes nothing: the tokens up to offset + count are there already.
local job_key, journal_key, request_key = KEYS[1], KEYS[2], KEYS[3]
local fence = ARGV[1]
local lease_ms = ARGV[2]
local offset = ARGV[3]
local count = ARGV[4]
local tokens_entry = ARGV[5]
local ttl_s = ARGV[6]

-- part: never_begun
local r = redis.call('HMGET', job_key, 'state', 'fence', 'tokens', 'cancel', 'attempt')
if not r[1] or never_begun(r[1], r[5]) then
  return 'missing'
end
if r[1] ~= 'running' or r[2] ~= fence then
  return 'fenced'
end
if tonumber(offset) > tonumber(r[3]) or redis.call('EXISTS', journal_key) == 0 then
  -- A failover to a replica that lagged, or an evicted journal: what comes before these tokens is gone.
  return 'missing'
end
-- Redis' clock, because the clocks of two workers differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = tonumber(offset) + tonumber(count)
if last > tonumber(r[3]) then
  redis.call('XADD', journal_key, '*', 'entry', tokens_entry)
  redis.call('HSET', job_key, 'tokens', last, 'lease', now + tonumber(lease_ms))
else
  redis.call('HSET', job_key, 'lease', now + tonumber(lease_ms))
end
if redis.call('TTL', job_key) < ttl_s / 2 then
  redis.call('EXPIRE', job_key, ttl_s)
  redis.call('EXPIRE', journal_key, ttl_s)
  redis.call('EXPIRE', request_key, ttl_s)
end
return r[4] or 'ok'
