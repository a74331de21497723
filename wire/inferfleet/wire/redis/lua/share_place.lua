-- Prefer a job if its tenant was served no more than the mean of the tenants that compete, and has room.
-- Returns 1 if it is preferred.
-- Sent twice, the second finds the job preferred, or decides again. A place is as new as the last that asked for it, so
-- that nobody who asked before gives it back.
local shares_key, preferred_key = KEYS[1], KEYS[2]
local tenant = ARGV[1]
local job = ARGV[2]
local weight = ARGV[3] -- '' if it stays as it is
local most = ARGV[4] -- how many jobs of a tenant of weight 1 may be preferred at once
local half_life_ms = ARGV[5]
local competes = ARGV[6] -- which part of the best share a tenant must have had to compete
local many = ARGV[7] -- with more tenants than that, the mean may be some time old
local mean_ms = ARGV[8] -- how long
local ttl_s = ARGV[9]

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if redis.call('ZSCORE', preferred_key, job) then
  redis.call('ZADD', preferred_key, now, job)
  return 1
end

local function read(stored)
  local work, jobs, preferred, its_weight, at = string.match(stored, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
  local left = 0.5 ^ (math.max(now - tonumber(at), 0) / tonumber(half_life_ms))
  return {work = work * left, jobs = jobs * left, preferred = preferred * left, weight = tonumber(its_weight), at = tonumber(at)}
end

local function write(name, share)
  redis.call('HSET', shares_key, name,
    string.format('%.3f %.6f %d %.3f %d', share.work, share.jobs, share.preferred, share.weight, now))
end

local function service(share, of_all)
  -- Jobs that have not ended are expected to be like those of the tenant that have, or like those of all.
  local of_job = share.jobs >= 0.01 and share.work / share.jobs or of_all
  return (share.work + share.preferred * of_job) / share.weight
end

local mine = read(redis.call('HGET', shares_key, tenant) or '0 0 0 1 0')
mine.preferred = redis.call('ZCARD', preferred_key)
mine.weight = tonumber(weight) or mine.weight
-- The field without a name has what was last computed of all.
local known = redis.call('HGET', shares_key, '') or '0 0 0 0'
local mean, of_all, tenants, at = string.match(known, '^(%S+) (%S+) (%S+) (%S+)$')
if tonumber(tenants) <= tonumber(many) or math.abs(now - tonumber(at)) >= tonumber(mean_ms) then
  local shares, all_work, all_jobs = {mine}, mine.work, mine.jobs
  local stored = redis.call('HGETALL', shares_key)
  for i = 1, #stored, 2 do
    if stored[i] ~= tenant and stored[i] ~= '' then
      local share = read(stored[i + 1])
      if share.jobs + share.preferred < 0.01 then
        redis.call('HDEL', shares_key, stored[i])
      else
        if share.at > now then
          -- Of a clock that was set back since: it would not decay until then.
          write(stored[i], share)
        end
        table.insert(shares, share)
        all_work, all_jobs = all_work + share.work, all_jobs + share.jobs
      end
    end
  end
  of_all = all_jobs >= 0.01 and all_work / all_jobs or 1
  local best = 0
  for _, share in ipairs(shares) do
    share.service = service(share, of_all)
    best = math.max(best, share.service)
  end
  local sum, count = 0, 0
  for _, share in ipairs(shares) do
    if share.service > 0 and share.service >= tonumber(competes) * best then
      sum, count = sum + share.service, count + 1
    end
  end
  mean = count > 0 and sum / count or 0
  redis.call('HSET', shares_key, '', string.format('%.6f %.6f %d %d', mean, of_all, #shares, now))
end
local prefers = 0
if service(mine, tonumber(of_all)) <= tonumber(mean) * 1.000001
    and mine.preferred < math.max(tonumber(most) * mine.weight, 1) then
  prefers = 1
  redis.call('ZADD', preferred_key, now, job)
  redis.call('EXPIRE', preferred_key, ttl_s)
end
mine.preferred = mine.preferred + prefers
write(tenant, mine)
redis.call('EXPIRE', shares_key, ttl_s)
return prefers
