-- Replace the state, if it is at the version the caller knows.
-- Returns {verdict, version now}. Verdicts: 'ok', 'conflict', 'too_large'; only with 'ok' something was written.
-- Sent twice, the second knows its token and answers as the first.
local session_key, turns_key, state_key = KEYS[1], KEYS[2], KEYS[3]
local expected_version = ARGV[1]
local state = ARGV[2]
local now_ms = ARGV[3]
local default_idle_ttl_s = ARGV[4]
local max_bytes = ARGV[5] -- of history and state
local token = ARGV[6] -- of this call

local s = redis.call('HMGET', session_key, 'state_version', 'idle_ttl_s', 'bytes', 'token')
local version = tonumber(s[1] or 0)
if version ~= tonumber(expected_version) then
  return {s[4] == token and 'ok' or 'conflict', version}
end
if tonumber(s[3] or 0) + #state > tonumber(max_bytes) then
  return {'too_large', version}
end
redis.call('HSETNX', session_key, 'created_at', now_ms)
redis.call('SET', state_key, state)
redis.call('HSET', session_key, 'updated_at', now_ms, 'state_bytes', #state, 'token', token)
local new = redis.call('HINCRBY', session_key, 'state_version', 1)
-- A busy session lives longer than an idle one.
local ttl = math.max(redis.call('TTL', session_key), tonumber(s[2] or default_idle_ttl_s))
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ttl)
end
return {'ok', new}
