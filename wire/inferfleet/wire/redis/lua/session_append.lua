-- A turn is complete: add it to the history, and its state, unless its session was deleted since it entered.
-- Returns 'ok', 'taken' (the session is not this turn's: Redis lost it), 'fenced' (a later attempt has the turn),
-- or 'state_conflict'; only with 'ok' something was written. Sent twice, the second answers 'ok'.
local session_key, turns_key, state_key = KEYS[1], KEYS[2], KEYS[3]
local job = ARGV[1]
local fence = ARGV[2]
local turn = ARGV[3]
local answer = ARGV[4]
local now_ms = ARGV[5]
local expected_version = ARGV[6] -- of the state; '' for no new state
local state = ARGV[7]
local ttl_s = ARGV[8]
local warm = ARGV[9] -- the routing key of the worker that has the turn in its cache; '' if no other turn shall wait for it

local s = redis.call('HMGET', session_key, 'owner', 'fence', 'last_turn', 'state_version', 'forgotten')
if s[1] ~= job then
  return 'taken'
end
if s[2] ~= fence then
  return 'fenced'
end
if s[3] == job then
  return 'ok'
end
local kept = not string.find(' ' .. (s[5] or '') .. ' ', ' ' .. job .. ' ', 1, true)
if kept and expected_version ~= '' then
  if tonumber(s[4] or 0) ~= tonumber(expected_version) then
    return 'state_conflict'
  end
  redis.call('SET', state_key, state)
  redis.call('HINCRBY', session_key, 'state_version', 1)
  redis.call('HSET', session_key, 'state_bytes', #state)
end
if kept then
  redis.call('RPUSH', turns_key, turn)
  redis.call('HINCRBY', session_key, 'turns', 1)
  redis.call('HINCRBY', session_key, 'version', 1)
  redis.call('HINCRBY', session_key, 'bytes', #turn)
  redis.call('HSET', session_key, 'updated_at', now_ms)
end
redis.call('HSET', session_key, 'last_turn', job, 'answer', answer)
if warm ~= '' then
  redis.call('HSET', session_key, 'warm', warm)
else
  redis.call('HDEL', session_key, 'warm')
end
local ttl = math.max(redis.call('TTL', session_key), tonumber(ttl_s))
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ttl)
end
return 'ok'
