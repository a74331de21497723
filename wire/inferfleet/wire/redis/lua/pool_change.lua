-- Set a field of a pool, or clear it.
-- Returns 1 if it was set before, else 0. Sent twice, the second answers as the first and changes nothing, also after others.
local pool_key = KEYS[1]
local field = ARGV[1]
local value = ARGV[2] -- '' to clear it
local change = ARGV[3] -- an id of this change, of 16 characters

local changes = redis.call('HGET', pool_key, 'changes') or ''
local _, last = string.find(changes, change, 1, true)
if last then
  return tonumber(string.sub(changes, last + 1, last + 1))
end
local before = redis.call('HEXISTS', pool_key, field)
-- The last 16 changes, each with what it answered.
redis.call('HSET', pool_key, 'changes', string.sub(changes .. change .. before, -272))
if value == '' then
  redis.call('HDEL', pool_key, field)
else
  redis.call('HSET', pool_key, field, value)
end
return before
