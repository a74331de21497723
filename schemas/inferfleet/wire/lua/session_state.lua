-- Replace the state, if it is at the version the caller knows.
-- KEYS session, state
-- ARGV expected_version, state, now_ms, default_idle_ttl_s
-- Returns {1, new version} or {0, present version}.
local s = redis.call('HMGET', KEYS[1], 'state_version', 'idle_ttl_s')
local version = tonumber(s[1] or 0)
if version ~= tonumber(ARGV[1]) then
  return {0, version}
end
redis.call('HSETNX', KEYS[1], 'created_at', ARGV[3])
redis.call('HSET', KEYS[1], 'updated_at', ARGV[3])
redis.call('SET', KEYS[2], ARGV[2], 'KEEPTTL')
local new = redis.call('HINCRBY', KEYS[1], 'state_version', 1)
for _, key in ipairs(KEYS) do
  if redis.call('TTL', key) < tonumber(s[2] or ARGV[4]) then
    redis.call('EXPIRE', key, s[2] or ARGV[4])
  end
end
return {1, new}
