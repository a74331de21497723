-- Append steps to a run, none to only renew its lease.
-- Returns how much the run was told so far; -1 if another runner has it, or its steps are not those that the
-- caller knows. Sent twice, the second changes nothing.
local run_key, steps_key, inbox_key = KEYS[1], KEYS[2], KEYS[3]
local fence = ARGV[1]
local lease_ms = ARGV[2]
local ttl_s = ARGV[3]
local position = ARGV[4] -- how many steps there are before these
local moved_on = ARGV[5] -- '1' if the run has moved on: whoever dies next, this was not in vain
local cost = ARGV[6] -- what the run has cost with these steps, '' if no price is known
-- The rest of ARGV: steps.

local r = redis.call('HMGET', run_key, 'fence', 'state', 'told')
if r[1] ~= fence or r[2] ~= 'running' then
  return -1
end
local known, new = redis.call('LLEN', steps_key) - tonumber(position), #ARGV - 6
if new > 0 and known == 0 then
  redis.call('RPUSH', steps_key, unpack(ARGV, 7))
elseif known ~= new then
  return -1
end
if moved_on == '1' then
  redis.call('HSET', run_key, 'claims', 0)
end
if cost ~= '' then
  redis.call('HSET', run_key, 'cost', cost)
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', run_key, 'lease_until', now + tonumber(lease_ms))
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ttl_s)
end
return tonumber(r[3] or 0)
