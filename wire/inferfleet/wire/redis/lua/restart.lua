-- The tokens in the journal cannot be continued: they count no more, and the running attempt begins the answer again.
-- KEYS record, journal
-- ARGV fence, the fence from here on, model identity, restarted_entry, running_entry
-- Returns 'ok', 'cancel' or 'interrupt' (done, and somebody asked for that), 'fenced' or 'missing'. Sent twice, the
-- second finds the new fence and changes nothing.
local r = redis.call('HMGET', KEYS[1], 'state', 'fence', 'cancel')
if not r[1] then
  return 'missing'
end
if r[1] ~= 'running' then
  return 'fenced'
end
if r[2] == ARGV[2] then
  return r[3] or 'ok'
end
if r[2] ~= ARGV[1] then
  return 'fenced'
end
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[4])
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[5])
if redis.call('TTL', KEYS[2]) < 0 then
  -- It was lost, and this is a new one.
  redis.call('EXPIRE', KEYS[2], math.max(1, redis.call('TTL', KEYS[1])))
end
redis.call('HSET', KEYS[1], 'fence', ARGV[2], 'tokens', 0, 'tokens_at_start', 0, 'model_identity', ARGV[3])
return r[3] or 'ok'
