-- Look at the turn that owns a session, for one that waits behind it.
-- KEYS session, payloads
-- ARGV job ('' for none: the caller publishes this owner, so its producer can no longer take it back)
-- Returns {owner, payload} while the owner's message is not known to be in the queue, else {'', ''}.
local s = redis.call('HMGET', KEYS[1], 'owner', 'published')
if not s[1] or s[1] == '' or s[2] ~= '0' then
  return {'', ''}
end
if s[1] == ARGV[1] then
  redis.call('HSET', KEYS[1], 'offered', 1)
end
return {s[1], redis.call('HGET', KEYS[2], s[1]) or ''}
