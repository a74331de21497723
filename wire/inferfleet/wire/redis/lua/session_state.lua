-- Replace the state, if it is at the version the caller knows.
-- KEYS session, turns, state
-- ARGV expected_version, state, now_ms, default_idle_ttl_s, max_bytes (of history and state), token of this call
-- Returns {verdict, version now}. Verdicts: 'ok', 'conflict', 'too_large'; only with 'ok' something was written.
-- Sent twice, the second knows its token and answers as the first.
local s = redis.call('HMGET', KEYS[1], 'state_version', 'idle_ttl_s', 'bytes', 'token')
local version = tonumber(s[1] or 0)
if version ~= tonumber(ARGV[1]) then
  return {s[4] == ARGV[6] and 'ok' or 'conflict', version}
end
if tonumber(s[3] or 0) + #ARGV[2] > tonumber(ARGV[5]) then
  return {'too_large', version}
end
redis.call('HSETNX', KEYS[1], 'created_at', ARGV[3])
redis.call('SET', KEYS[3], ARGV[2])
redis.call('HSET', KEYS[1], 'updated_at', ARGV[3], 'state_bytes', #ARGV[2], 'token', ARGV[6])
local new = redis.call('HINCRBY', KEYS[1], 'state_version', 1)
-- A busy session lives longer than an idle one.
local ttl = math.max(redis.call('TTL', KEYS[1]), tonumber(s[2] or ARGV[4]))
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ttl)
end
return {'ok', new}
