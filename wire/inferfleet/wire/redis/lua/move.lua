-- A rollout was aborted: a job moves from the canary pool to the pool to which it was submitted.
-- Returns 1 if it has moved, by this call or before; 0 if there is no such job any more. Sent twice, the second changes
-- nothing.
local job_key, request_key = KEYS[1], KEYS[2]
local pool = ARGV[1]
local request = ARGV[2] -- the body of its message in that pool

local r = redis.call('HMGET', job_key, 'state', 'attempt')
if r[1] ~= 'queued' and r[1] ~= 'running' then
  return 0
end
-- The caller may die before it has removed the message from the canary pool: then there are two.
redis.call('HSET', job_key, 'pool', pool, 'copied', r[2] or 0)
redis.call('HDEL', job_key, 'submitted_to')
if redis.call('EXISTS', request_key) == 1 then
  redis.call('SET', request_key, request, 'EX', math.max(1, redis.call('TTL', request_key)))
end
return 1
