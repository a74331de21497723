-- Forget history and state. A turn that runs or waits goes on, in a session that is empty.
-- KEYS session, lane, payloads, turns, state, this call
-- ARGV ttl_s of the call
-- Returns 1 if there was a session. Sent twice, the second knows the call and answers as the first, whoever has made
-- a session of that id since.
local answered = redis.call('GET', KEYS[6])
if answered then
  return tonumber(answered)
end
local owner = redis.call('HGET', KEYS[1], 'owner')
local existed = redis.call('DEL', KEYS[4], KEYS[5]) > 0 or redis.call('EXISTS', KEYS[1]) == 1
if owner and owner ~= '' then
  redis.call('HDEL', KEYS[1], 'turns', 'version', 'bytes', 'state_version', 'state_bytes', 'updated_at')
else
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
end
redis.call('SET', KEYS[6], existed and 1 or 0, 'EX', ARGV[1])
return existed and 1 or 0
