-- Append generated tokens to the journal and renew the lease. With a count of 0, only renew.
-- KEYS record, journal
-- ARGV fence, lease_ms, offset, count, entry, ttl_s
-- Returns 'ok', 'cancel' or 'interrupt' (written, and somebody asked for that), 'fenced' or 'missing'.
-- Sent twice, the second changes nothing: the tokens up to offset + count are there already.
local r = redis.call('HMGET', KEYS[1], 'state', 'fence', 'tokens', 'cancel')
if not r[1] then
  return 'missing'
end
if r[1] ~= 'running' or r[2] ~= ARGV[1] then
  return 'fenced'
end
if tonumber(ARGV[3]) > tonumber(r[3]) or redis.call('EXISTS', KEYS[2]) == 0 then
  -- A failover to a replica that lagged, or an evicted journal: what comes before these tokens is gone.
  return 'missing'
end
-- Redis' clock, because the clocks of two workers differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = tonumber(ARGV[3]) + tonumber(ARGV[4])
if last > tonumber(r[3]) then
  redis.call('XADD', KEYS[2], '*', 'entry', ARGV[5])
  redis.call('HSET', KEYS[1], 'tokens', last, 'lease', now + tonumber(ARGV[2]))
else
  redis.call('HSET', KEYS[1], 'lease', now + tonumber(ARGV[2]))
end
if redis.call('TTL', KEYS[1]) < ARGV[6] / 2 then
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('EXPIRE', KEYS[2], ARGV[6])
end
return r[4] or 'ok'
