-- Tell a run something that it may wait for. Of two messages with the same name the first counts.
-- Returns its state afterwards, 'queued' if it can go on, '' if there is no such run; and 1 if this message
-- counts, 0 if it changed nothing.
local run_key, inbox_key = KEYS[1], KEYS[2]
local name = ARGV[1]
local message = ARGV[2]
local ttl_s = ARGV[3]

local state = redis.call('HGET', run_key, 'state')
if not state then
  return {'', 0}
elseif state ~= 'queued' and state ~= 'running' and state ~= 'waiting' then
  return {state, 0}
end
local new = redis.call('HSETNX', inbox_key, name, message)
if new == 1 then
  redis.call('HINCRBY', run_key, 'told', 1)
  redis.call('EXPIRE', inbox_key, ttl_s)
  if state == 'waiting' then
    state = 'queued'
    redis.call('HSET', run_key, 'state', state)
  end
end
return {state, new}
