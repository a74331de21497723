-- Change the rollout of a pool: its state and the rule that producers follow, both or neither.
-- Returns 1 if it was changed, 0 if somebody else has changed it since the caller read it. Sent twice, the second
-- answers as the first and changes nothing, also after others.
local rollout_key, pool_key = KEYS[1], KEYS[2]
local known_revision = ARGV[1] -- 0 if there was none
local state = ARGV[2]
local rule = ARGV[3] -- '' for none
local change = ARGV[4] -- an id of this change, of 16 characters

local r = redis.call('HMGET', rollout_key, 'revision', 'state', 'changes')
local present, known = tonumber(r[1] or 0), tonumber(known_revision)
local changes = r[3] or ''
if string.find(changes, change, 1, true) or (present == known + 1 and r[2] == state) then
  return 1
end
if present ~= known then
  return 0
end
-- The last 16 changes.
redis.call('HSET', rollout_key, 'revision', known + 1, 'state', state, 'changes', string.sub(changes .. change, -256))
if rule == '' then
  redis.call('HDEL', pool_key, 'rollout')
else
  redis.call('HSET', pool_key, 'rollout', rule)
end
return 1
