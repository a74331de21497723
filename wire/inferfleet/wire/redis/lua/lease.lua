-- Take, renew or give up a lease.
-- Returns who has it now: '' for nobody. Sent twice, the second changes nothing, unless others have taken it in between.
local lease_key = KEYS[1]
local holder = ARGV[1]
local lease_ms = ARGV[2] -- 0 to give it up

local present = redis.call('GET', lease_key)
if present and present ~= holder then
  return present
end
if lease_ms == '0' then
  redis.call('DEL', lease_key)
  return ''
end
redis.call('SET', lease_key, holder, 'PX', lease_ms)
return holder
