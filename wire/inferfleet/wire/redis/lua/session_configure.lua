-- Set how long an idle session stays, and how much of its history goes into a prompt.
-- KEYS session, turns, state, this call
-- ARGV idle_ttl_s ('' keeps it), max_history_tokens ('' keeps it), now_ms, default_idle_ttl_s, ttl_s of the call
-- Sent twice, the second knows the call and changes nothing, whoever has changed the session since.
if not redis.call('SET', KEYS[4], 1, 'NX', 'EX', ARGV[5]) then
  return 1
end
redis.call('HSETNX', KEYS[1], 'created_at', ARGV[3])
if ARGV[1] ~= '' then
  redis.call('HSET', KEYS[1], 'idle_ttl_s', ARGV[1])
end
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], 'max_history_tokens', ARGV[2])
end
if (redis.call('HGET', KEYS[1], 'owner') or '') == '' then
  local ttl = redis.call('HGET', KEYS[1], 'idle_ttl_s') or ARGV[4]
  for key = 1, 3 do
    redis.call('EXPIRE', KEYS[key], ttl)
  end
end
return 1
