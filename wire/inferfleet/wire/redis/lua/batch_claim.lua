-- Claim a batch that nobody works on, or whose runner has let its lease run out.
-- Returns its fields; none if there is no such batch, or another runner has it.
local batch_key = KEYS[1]
local runner = ARGV[1]
local lease_ms = ARGV[2]

-- part: rest_of_lease
if redis.call('HEXISTS', batch_key, 'order') == 0 then
  return {}
end
local r = redis.call('HMGET', batch_key, 'runner', 'lease_until')
-- Redis' clock, because the clocks of two gateways differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local rest = rest_of_lease(batch_key, 'lease_until', tonumber(r[2] or 0), tonumber(lease_ms), now)
if r[1] and r[1] ~= runner and rest > 0 then
  return {}
end
redis.call('HSET', batch_key, 'runner', runner, 'lease_until', now + tonumber(lease_ms))
return redis.call('HGETALL', batch_key)
