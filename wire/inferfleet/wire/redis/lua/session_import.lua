-- Make a session from turns and a state, unless it exists.
-- KEYS session, turns, state, this call
-- ARGV now_ms, ttl_s, idle_ttl_s ('' for the default), max_history_tokens ('' for none), state ('' for none), bytes, ttl_s of the call, turn...
-- Returns 1, or 0 if the session exists. Sent twice, the second knows the call and answers as the first, also if the
-- session was deleted since.
local answered = redis.call('GET', KEYS[4])
if answered then
  return tonumber(answered)
end
local exists = redis.call('EXISTS', KEYS[1]) == 1
redis.call('SET', KEYS[4], exists and 0 or 1, 'EX', ARGV[7])
if exists then
  return 0
end
local turns = #ARGV - 7
redis.call('HSET', KEYS[1], 'owner', '', 'turns', turns, 'version', turns, 'bytes', ARGV[6], 'state_version', 0,
  'created_at', ARGV[1], 'updated_at', ARGV[1])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'idle_ttl_s', ARGV[3])
end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'max_history_tokens', ARGV[4])
end
for first = 8, #ARGV, 1000 do
  redis.call('RPUSH', KEYS[2], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
if ARGV[5] ~= '' then
  redis.call('SET', KEYS[3], ARGV[5])
  redis.call('HSET', KEYS[1], 'state_version', 1, 'state_bytes', #ARGV[5])
end
for key = 1, 3 do
  redis.call('EXPIRE', KEYS[key], ARGV[2])
end
return 1
