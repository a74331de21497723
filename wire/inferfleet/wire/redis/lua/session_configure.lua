-- Set how long an idle session stays, and how much of its history goes into a prompt.
-- Sent twice, the second knows the call and changes nothing, whoever has changed the session since.
local session_key, turns_key, state_key, call_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local idle_ttl_s = ARGV[1] -- '' keeps it
local max_history_tokens = ARGV[2] -- '' keeps it
local now_ms = ARGV[3]
local default_idle_ttl_s = ARGV[4]
local call_ttl_s = ARGV[5]

if not redis.call('SET', call_key, 1, 'NX', 'EX', call_ttl_s) then
  return 1
end
redis.call('HSETNX', session_key, 'created_at', now_ms)
if idle_ttl_s ~= '' then
  redis.call('HSET', session_key, 'idle_ttl_s', idle_ttl_s)
end
if max_history_tokens ~= '' then
  redis.call('HSET', session_key, 'max_history_tokens', max_history_tokens)
end
if (redis.call('HGET', session_key, 'owner') or '') == '' then
  local ttl = redis.call('HGET', session_key, 'idle_ttl_s') or default_idle_ttl_s
  for key = 1, 3 do
    redis.call('EXPIRE', KEYS[key], ttl)
  end
end
return 1
