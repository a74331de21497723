-- Let a job have its cost of what an API key is guaranteed, if the key has not used that up. It may go into debt by a job.
-- Returns 1 if the job fits.
-- Sent twice, the second takes nothing, and answers as the first if its caller has sent nothing else meanwhile.
local guarantee_key = KEYS[1]
local caller = ARGV[1]
local number = ARGV[2] -- of the call; each call of a caller has a higher one
local cost_ms = ARGV[3] -- how long the guarantee takes to provide it
local burst_ms = ARGV[4] -- how much of the future a key may use at once
local ttl_s = ARGV[5]

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local r = redis.call('HMGET', guarantee_key, 'used_until', caller, 'at')
local last, answer = string.match(r[2] or '', '^(%d+) (%d)$')
if last == number then
  return tonumber(answer)
end
-- What was used by a clock that was set back since is moved with it.
local used_until = math.max(tonumber(r[1] or now) - math.max(tonumber(r[3] or now) - now, 0), now)
local fits = used_until - now < tonumber(burst_ms) and 1 or 0
if last and tonumber(number) < tonumber(last) then
  return fits
end
redis.call('HSET', guarantee_key, 'used_until', string.format('%.3f', used_until + fits * cost_ms), 'at', now,
  caller, number .. ' ' .. fits)
redis.call('EXPIRE', guarantee_key, ttl_s)
return fits
