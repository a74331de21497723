-- Another job runs after this one: note it, so that whoever ends this one lets it go on.
-- Returns this job's state: '' if there is none of this tenant, 'full' if too many follow it. Sent twice, the second
-- changes nothing.
local job_key = KEYS[1]
local follower = ARGV[1]
local tenant = ARGV[2]
local most = ARGV[3]
local call = ARGV[4] -- unique to this call

local r = redis.call('HMGET', job_key, 'state', 'tenant', 'followers')
if not r[1] or (r[2] and r[2] ~= tenant) then
  return ''
end
local followers = r[3] or ''
if not string.find(followers, follower, 1, true) then
  if #followers >= tonumber(most) * (#follower + 1) then
    return 'full'
  end
  followers = followers .. follower .. ' '
end
-- Whoever is about to take the same follower back has to look again.
redis.call('HSET', job_key, 'followers', followers, 'followed_by', call)
return r[1]
