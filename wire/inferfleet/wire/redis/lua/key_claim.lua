-- Claim an idempotency key.
-- KEYS key
-- ARGV holder, ttl_s
-- Returns who holds it: the caller, if nobody did.
local held = redis.call('GET', KEYS[1])
if held then
  return held
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
