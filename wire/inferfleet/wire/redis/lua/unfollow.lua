-- A job that was to run after this one is taken back: forget it, unless somebody has noted a job here since.
-- Returns 1 if it was noted; 'followed' if somebody has, so the caller has to look again. Sent twice, the second changes
-- nothing.
local job_key = KEYS[1]
local follower = ARGV[1]
local tenant = ARGV[2]
local known_call = ARGV[3] -- the last one that has noted a job here, as the caller has read it; '' for none

local r = redis.call('HMGET', job_key, 'followers', 'tenant', 'followed_by')
local first, last = string.find(r[1] or '', follower .. ' ', 1, true)
if not first or (r[2] and r[2] ~= tenant) then
  return 0
end
if (r[3] or '') ~= known_call then
  return 'followed'
end
local others = string.sub(r[1], 1, first - 1) .. string.sub(r[1], last + 1)
if others == '' then
  redis.call('HDEL', job_key, 'followers')
else
  redis.call('HSET', job_key, 'followers', others)
end
return 1
