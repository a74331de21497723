-- Look at the turn that owns a session, for another one's producer.
-- Returns {owner, unpublished (1: nobody has said that it has a message), revived (1: it was published again since
-- its last attempt began), placed (1: the job owns the session or waits for it), payload of the owner to publish}.
local session_key, payloads_key = KEYS[1], KEYS[2]
local job = ARGV[1]
local take = ARGV[2] -- the owner that the caller is going to publish ('' for none): its producer can no longer take it back

local s = redis.call('HMGET', session_key, 'owner', 'published', 'attempt', 'revived')
local owner, payload = s[1] or '', ''
if owner ~= '' and owner == take then
  redis.call('HSET', session_key, 'offered', 1)
  payload = redis.call('HGET', payloads_key, owner) or ''
end
local placed = owner == job or redis.call('HEXISTS', payloads_key, job) == 1
return {owner, owner ~= '' and s[2] == '0' and 1 or 0, s[4] and s[4] == (s[3] or '0') and 1 or 0, placed and 1 or 0, payload}
