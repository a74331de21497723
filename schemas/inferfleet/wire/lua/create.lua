-- A job is accepted: make its record, unless it is there.
-- KEYS record, journal
-- ARGV now_ms, ttl_s, entry, pool, priority, reply_to, session ('' for none)
-- Returns {created (1 or 0), state, attempt}.
local state = redis.call('HGET', KEYS[1], 'state')
if state then
  return {0, state, tonumber(redis.call('HGET', KEYS[1], 'attempt'))}
end
redis.call('HSET', KEYS[1], 'state', 'queued', 'attempt', 0, 'charged', 0, 'tokens', 0,
  'pool', ARGV[4], 'priority', ARGV[5], 'reply_to', ARGV[6], 'submitted_at', ARGV[1])
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[1], 'session', ARGV[7])
end
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return {1, 'queued', 0}
