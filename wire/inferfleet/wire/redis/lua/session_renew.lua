-- A turn still runs: its session lives on.
-- KEYS session, lane, payloads, turns, state
-- ARGV job, fence, ttl_s
-- Returns 1 if the turn owns the session.
local s = redis.call('HMGET', KEYS[1], 'owner', 'fence')
if s[1] ~= ARGV[1] or s[2] ~= ARGV[2] then
  return 0
end
for _, key in ipairs(KEYS) do
  if redis.call('TTL', key) < tonumber(ARGV[3]) then
    redis.call('EXPIRE', key, ARGV[3])
  end
end
return 1
