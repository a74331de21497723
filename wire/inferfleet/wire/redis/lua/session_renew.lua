-- A turn still runs: its session lives on.
-- Returns 1 if the turn owns the session.
local session_key, lane_key, payloads_key, turns_key, state_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local job = ARGV[1]
local fence = ARGV[2]
local ttl_s = ARGV[3]

local s = redis.call('HMGET', session_key, 'owner', 'fence')
if s[1] ~= job or s[2] ~= fence then
  return 0
end
for _, key in ipairs(KEYS) do
  if redis.call('TTL', key) < tonumber(ttl_s) then
    redis.call('EXPIRE', key, ttl_s)
  end
end
return 1
