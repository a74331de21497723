-- Record a sample of the fleet, and take or renew the lease of the process that records samples.
-- Returns 1 if the caller holds the lease, 0 if another process does. Sent twice, the second adds nothing.
local recorder_key, history_key = KEYS[1], KEYS[2]
local recorder = ARGV[1]
local lease_ms = ARGV[2]
local sample = ARGV[3] -- '' to only take or renew the lease
local most = ARGV[4]
local ttl_s = ARGV[5]

local present = redis.call('GET', recorder_key)
if present and present ~= recorder then
  return 0
end
redis.call('SET', recorder_key, recorder, 'PX', lease_ms)
if sample ~= '' and redis.call('LRANGE', history_key, -1, -1)[1] ~= sample then
  if redis.call('RPUSH', history_key, sample) > tonumber(most) then
    redis.call('LPOP', history_key)
  end
  redis.call('EXPIRE', history_key, ttl_s)
end
return 1
