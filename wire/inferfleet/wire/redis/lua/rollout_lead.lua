-- Take or renew the lease of the process that controls the rollout of a pool.
-- Returns 1 if the caller holds the lease, 0 if another process does.
local rollout_key = KEYS[1]
local controller = ARGV[1]
local lease_ms = ARGV[2]

-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local r = redis.call('HMGET', rollout_key, 'controller', 'until')
if r[1] and r[1] ~= controller and tonumber(r[2]) > now then
  return 0
end
redis.call('HSET', rollout_key, 'controller', controller, 'until', now + tonumber(lease_ms))
return 1
