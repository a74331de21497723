-- Look at the turn that owns a session, for another one's producer.
-- KEYS session, payloads
-- ARGV job, the owner that the caller is going to publish ('' for none): its producer can no longer take it back
-- Returns {owner, unpublished (1: nobody has said that it has a message), revived (1: it was published again since
-- its last attempt began), placed (1: the job owns the session or waits for it), payload of the owner to publish}.
local s = redis.call('HMGET', KEYS[1], 'owner', 'published', 'attempt', 'revived')
local owner, payload = s[1] or '', ''
if owner ~= '' and owner == ARGV[2] then
  redis.call('HSET', KEYS[1], 'offered', 1)
  payload = redis.call('HGET', KEYS[2], owner) or ''
end
local placed = owner == ARGV[1] or redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1
return {owner, owner ~= '' and s[2] == '0' and 1 or 0, s[4] and s[4] == (s[3] or '0') and 1 or 0, placed and 1 or 0, payload}
