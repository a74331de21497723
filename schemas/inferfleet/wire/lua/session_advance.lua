-- A turn is over, or was never accepted: let the next one run.
-- KEYS session, lane, payloads, turns, state
-- ARGV job, now_ms, default_idle_ttl_s, witness (the job whose message comes again until the next is published)
-- Returns the payload of the turn to publish, or ''. Sent twice, the second gives the same payload.
local s = redis.call('HMGET', KEYS[1], 'owner', 'witness', 'published', 'idle_ttl_s')
local owner = s[1] or ''
if owner ~= ARGV[1] then
  if redis.call('LREM', KEYS[2], 0, ARGV[1]) > 0 then
    redis.call('HDEL', KEYS[3], ARGV[1])
  elseif owner ~= '' and s[2] == ARGV[4] and s[3] == '0' then
    return redis.call('HGET', KEYS[3], owner) or ''
  end
  return ''
end
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[1], 'answer')
local next = redis.call('LPOP', KEYS[2])
redis.call('HSET', KEYS[1], 'owner', next or '', 'witness', ARGV[4], 'published', 0, 'owner_since', ARGV[2],
  'fence', '', 'attempt', 0)
if next then
  return redis.call('HGET', KEYS[3], next) or ''
end
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, s[4] or ARGV[3])
end
return ''
