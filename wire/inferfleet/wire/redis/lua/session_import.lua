-- Make a session from turns and a state, unless it exists.
-- Returns 1, or 0 if the session exists. Sent twice, the second knows the call and answers as the first, also if the
-- session was deleted since.
local session_key, turns_key, state_key, call_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now_ms = ARGV[1]
local ttl_s = ARGV[2]
local idle_ttl_s = ARGV[3] -- '' for the default
local max_history_tokens = ARGV[4] -- '' for none
local state = ARGV[5] -- '' for none
local history_bytes = ARGV[6]
local call_ttl_s = ARGV[7]
-- The rest of ARGV: turns.

local answered = redis.call('GET', call_key)
if answered then
  return tonumber(answered)
end
local exists = redis.call('HEXISTS', session_key, 'created_at') == 1
redis.call('SET', call_key, exists and 0 or 1, 'EX', call_ttl_s)
if exists then
  return 0
end
local count = #ARGV - 7
-- Turns of a session that was deleted may still run.
redis.call('HSETNX', session_key, 'owner', '')
redis.call('HSET', session_key, 'turns', count, 'version', count, 'bytes', history_bytes, 'state_version', 0,
  'created_at', now_ms, 'updated_at', now_ms)
if idle_ttl_s ~= '' then
  redis.call('HSET', session_key, 'idle_ttl_s', idle_ttl_s)
end
if max_history_tokens ~= '' then
  redis.call('HSET', session_key, 'max_history_tokens', max_history_tokens)
end
for first = 8, #ARGV, 1000 do
  redis.call('RPUSH', turns_key, unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
if state ~= '' then
  redis.call('SET', state_key, state)
  redis.call('HSET', session_key, 'state_version', 1, 'state_bytes', #state)
end
local ttl = math.max(redis.call('TTL', session_key), tonumber(ttl_s))
for key = 1, 3 do
  redis.call('EXPIRE', KEYS[key], ttl)
end
return 1
