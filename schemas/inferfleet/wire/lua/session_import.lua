-- Make a session from turns and a state, unless it exists.
-- KEYS session, turns, state
-- ARGV now_ms, idle_ttl_s, max_history_tokens ('' for none), state ('' for none), bytes, token of this call, turn...
-- Returns 1, or 0 if the session exists. Sent twice, the second knows its token and answers as the first.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'token') == ARGV[6] and 1 or 0
end
local turns = #ARGV - 6
redis.call('HSET', KEYS[1], 'owner', '', 'turns', turns, 'version', turns, 'bytes', ARGV[5], 'state_version', 0,
  'created_at', ARGV[1], 'updated_at', ARGV[1], 'idle_ttl_s', ARGV[2], 'token', ARGV[6])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'max_history_tokens', ARGV[3])
end
for first = 7, #ARGV, 1000 do
  redis.call('RPUSH', KEYS[2], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
if ARGV[4] ~= '' then
  redis.call('SET', KEYS[3], ARGV[4])
  redis.call('HSET', KEYS[1], 'state_version', 1, 'state_bytes', #ARGV[4])
end
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ARGV[2])
end
return 1
