-- Take or renew the lease of the process that controls the rollout of a pool.
-- Returns 1 if the caller holds the lease, 0 if another process does.
local rollout_key = KEYS[1]
local controller = ARGV[1]
local lease_ms = ARGV[2]

-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local r = redis.call('HMGET', rollout_key, 'controller', 'until', 'led_since')
local rest_ms = tonumber(r[2] or 0) - now
-- A rest that is longer than a lease is of a clock that was set back since.
if r[1] and r[1] ~= controller and rest_ms > 0 and rest_ms <= tonumber(lease_ms) then
  return 0
end
-- Since when some process has always held it: one lease later the next one has taken over.
local led_since = r[3]
if not led_since or math.abs(rest_ms) > tonumber(lease_ms) then
  led_since = now
end
redis.call('HSET', rollout_key, 'controller', controller, 'until', now + tonumber(lease_ms), 'led_since', led_since)
return 1
