-- A turn is complete: add it to the history, and its state.
-- KEYS session, turns, state
-- ARGV job, fence, turn, answer, now_ms, expected_state_version ('' for no new state), state, ttl_s
-- Returns 'ok', 'taken' (the session is not this turn's: Redis lost it), 'fenced' (a later attempt has the turn),
-- or 'state_conflict'; only with 'ok' something was written. Sent twice, the second answers 'ok'.
local s = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'last_turn', 'state_version')
if s[1] ~= ARGV[1] then
  return 'taken'
end
if s[2] ~= ARGV[2] then
  return 'fenced'
end
if s[3] == ARGV[1] then
  return 'ok'
end
if ARGV[6] ~= '' then
  if tonumber(s[4] or 0) ~= tonumber(ARGV[6]) then
    return 'state_conflict'
  end
  redis.call('SET', KEYS[3], ARGV[7])
  redis.call('HINCRBY', KEYS[1], 'state_version', 1)
  redis.call('HSET', KEYS[1], 'state_bytes', #ARGV[7])
end
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('HINCRBY', KEYS[1], 'turns', 1)
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('HINCRBY', KEYS[1], 'bytes', #ARGV[3])
redis.call('HSET', KEYS[1], 'last_turn', ARGV[1], 'answer', ARGV[4], 'updated_at', ARGV[5])
local ttl = math.max(redis.call('TTL', KEYS[1]), tonumber(ARGV[8]))
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ttl)
end
return 'ok'
