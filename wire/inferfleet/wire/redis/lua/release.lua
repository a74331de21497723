-- Give a running job back to the queue: for a retry, or because its worker leaves.
-- KEYS record, journal
-- ARGV fence, ttl_s, offset, count, tokens_entry, queued_entry, refund (1: this attempt does not count),
--      pause_ms (nobody may start it earlier)
-- Returns 'ok', 'cancel' or 'interrupt' (given back, and somebody asked for that), 'fenced' or 'missing'. Sent twice, the second answers 'ok' and changes nothing.
local r = redis.call('HMGET', KEYS[1], 'state', 'fence', 'tokens', 'charged', 'cancel')
if not r[1] then
  return 'missing'
end
if r[2] ~= ARGV[1] then
  return 'fenced'
end
if r[1] ~= 'running' then
  return r[1] == 'queued' and (r[5] or 'ok') or 'fenced'
end
if tonumber(ARGV[3]) > tonumber(r[3]) or redis.call('EXISTS', KEYS[2]) == 0 then
  return 'missing'
end
local last = tonumber(ARGV[3]) + tonumber(ARGV[4])
if last > tonumber(r[3]) then
  redis.call('XADD', KEYS[2], '*', 'entry', ARGV[5])
else
  last = tonumber(r[3])
end
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[6])
-- Redis' clock, because the clocks of two workers differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[1], 'state', 'queued', 'tokens', last,
  'lease', now + tonumber(ARGV[8]), 'charged', math.max(0, tonumber(r[4]) - tonumber(ARGV[7])))
redis.call('HDEL', KEYS[1], 'worker')
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return r[5] or 'ok'
