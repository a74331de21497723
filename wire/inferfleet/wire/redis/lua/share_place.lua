-- Prefer a job if its tenant has been served no more than the mean of the tenants that compete, and has room.
-- Returns 1 if it is preferred.
-- Sent twice, the second finds the job preferred, or decides again.
local shares_key, preferred_key = KEYS[1], KEYS[2]
local tenant = ARGV[1]
local job = ARGV[2]
local weight = ARGV[3] -- '' if it stays as it is
local most = ARGV[4] -- how many jobs of a tenant of weight 1 may be preferred at once
local half_life_ms = ARGV[5]
local competes = ARGV[6] -- which part of the best share a tenant must have had to compete
local ttl_s = ARGV[7]

if redis.call('ZSCORE', preferred_key, job) then
  return 1
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local shares, all_work, all_jobs = {}, 0, 0
local stored = redis.call('HGETALL', shares_key)
for i = 1, #stored, 2 do
  local work, jobs, preferred, its_weight, at = string.match(stored[i + 1], '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
  local left = 0.5 ^ (math.max(now - tonumber(at), 0) / tonumber(half_life_ms))
  local share = {work = work * left, jobs = jobs * left, preferred = preferred * left, weight = tonumber(its_weight)}
  if share.jobs + share.preferred < 0.01 and stored[i] ~= tenant then
    redis.call('HDEL', shares_key, stored[i])
  else
    shares[stored[i]] = share
    all_work, all_jobs = all_work + share.work, all_jobs + share.jobs
  end
end
local mine = shares[tenant] or {work = 0, jobs = 0, weight = 1}
mine.preferred = redis.call('ZCARD', preferred_key)
mine.weight = tonumber(weight) or mine.weight
shares[tenant] = mine
local best = 0
for _, share in pairs(shares) do
  -- Jobs that have not ended are expected to be like those of the tenant that have, or like those of all.
  local mean = 1
  if share.jobs >= 0.01 then
    mean = share.work / share.jobs
  elseif all_jobs >= 0.01 then
    mean = all_work / all_jobs
  end
  share.service = (share.work + share.preferred * mean) / share.weight
  best = math.max(best, share.service)
end
local sum, count = mine.service, 1
for name, share in pairs(shares) do
  if name ~= tenant and share.service > 0 and share.service >= tonumber(competes) * best then
    sum, count = sum + share.service, count + 1
  end
end
local prefers = 0
if mine.service * count <= sum * 1.000001 and mine.preferred < math.max(tonumber(most) * mine.weight, 1) then
  prefers = 1
  redis.call('ZADD', preferred_key, now, job)
  redis.call('EXPIRE', preferred_key, ttl_s)
end
redis.call('HSET', shares_key, tenant,
  string.format('%.3f %.6f %d %.3f %d', mine.work, mine.jobs, mine.preferred + prefers, mine.weight, now))
redis.call('EXPIRE', shares_key, ttl_s)
return prefers
