-- The tokens in the journal cannot be continued: they count no more, and the running attempt begins the answer again.
-- Returns 'ok', 'cancel' or 'interrupt' (done, and somebody asked for that), 'fenced' or 'missing'. Sent twice, the
-- second finds the new fence and changes nothing.
local job_key, journal_key = KEYS[1], KEYS[2]
local fence = ARGV[1]
local new_fence = ARGV[2] -- from here on
local model_identity = ARGV[3]
local restarted_entry = ARGV[4]
local running_entry = ARGV[5]

-- part: never_begun
local r = redis.call('HMGET', job_key, 'state', 'fence', 'cancel', 'attempt')
if not r[1] or never_begun(r[1], r[4]) then
  return 'missing'
end
if r[1] ~= 'running' then
  return 'fenced'
end
if r[2] == new_fence then
  return r[3] or 'ok'
end
if r[2] ~= fence then
  return 'fenced'
end
redis.call('XADD', journal_key, '*', 'entry', restarted_entry)
redis.call('XADD', journal_key, '*', 'entry', running_entry)
if redis.call('TTL', journal_key) < 0 then
  -- It was lost, and this is a new one.
  redis.call('EXPIRE', journal_key, math.max(1, redis.call('TTL', job_key)))
end
redis.call('HSET', job_key, 'fence', new_fence, 'tokens', 0, 'tokens_at_start', 0, 'model_identity', model_identity)
return r[3] or 'ok'
