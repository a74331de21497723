-- A job is accepted: make its record, or join those who submit it too.
-- KEYS record, journal
-- ARGV now_ms, ttl_s, entry, pool, priority, reply_to, call (unique to this submission),
--      keep (1: do not let it be taken back, should somebody be about to), session ('' for none)
-- Returns {created (1 or 0), state, attempt, closed (1: whoever made it takes it back), stalled (1: an attempt has
-- begun it, for longer than its lease nobody has held it, and it has not been published again since)}.
local r = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'calls', 'closed', 'lease', 'lease_ms', 'copied')
if not r[1] then
  redis.call('HSET', KEYS[1], 'state', 'queued', 'attempt', 0, 'charged', 0, 'tokens', 0,
    'pool', ARGV[4], 'priority', ARGV[5], 'reply_to', ARGV[6], 'submitted_at', ARGV[1], 'calls', ARGV[7] .. ' ')
  if ARGV[9] ~= '' then
    redis.call('HSET', KEYS[1], 'session', ARGV[9])
  end
  redis.call('XADD', KEYS[2], '*', 'entry', ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('EXPIRE', KEYS[2], ARGV[2])
  return {1, 'queued', 0, 0, 0}
end
local attempt, stalled = tonumber(r[2]), 0
if r[1] == 'running' or (r[1] == 'queued' and attempt > 0) then
  -- Redis' clock, because the clocks of two machines differ.
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  stalled = r[7] ~= r[2] and tonumber(r[5] or 0) + tonumber(r[6] or 0) < now and 1 or 0
end
if stalled == 0 and (r[1] ~= 'queued' or attempt > 0) then
  return {0, r[1], attempt, 0, 0}
end
if r[4] and stalled == 0 and ARGV[8] == '0' then
  return {0, 'queued', 0, 1, 0}
end
redis.call('HDEL', KEYS[1], 'closed')
local calls = r[3] or ''
if not string.find(calls, ARGV[7] .. ' ', 1, true) then
  redis.call('HSET', KEYS[1], 'calls', calls .. ARGV[7] .. ' ')
end
return {0, r[1], attempt, 0, stalled}
