-- Forget a session. A turn that runs or waits goes on, and nothing of it is kept: 'forgotten' has their jobs.
-- Until somebody makes the session again, its record has no 'created_at', and is only about those turns.
-- Returns 1 if there was a session. Sent twice, the second knows the call and answers as the first, whoever has made
-- a session of that id since.
local session_key, lane_key, payloads_key, turns_key, state_key, call_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local call_ttl_s = ARGV[1]

local answered = redis.call('GET', call_key)
if answered then
  return tonumber(answered)
end
local owner = redis.call('HGET', session_key, 'owner')
local existed = redis.call('DEL', turns_key, state_key) > 0 or redis.call('HEXISTS', session_key, 'created_at') == 1
if owner and owner ~= '' then
  redis.call('HDEL', session_key, 'created_at', 'turns', 'version', 'bytes', 'state_version', 'state_bytes', 'updated_at',
    'idle_ttl_s', 'max_history_tokens')
  redis.call('HSET', session_key, 'forgotten', owner .. ' ' .. table.concat(redis.call('LRANGE', lane_key, 0, -1), ' '))
else
  redis.call('DEL', session_key, lane_key, payloads_key)
end
redis.call('SET', call_key, existed and 1 or 0, 'EX', call_ttl_s)
return existed and 1 or 0
