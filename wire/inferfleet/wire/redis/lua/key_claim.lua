-- Claim an idempotency key.
-- Returns who holds it: the caller, if nobody did.
local idempotency_key = KEYS[1]
local holder = ARGV[1]
local ttl_s = ARGV[2]

local held = redis.call('GET', idempotency_key)
if held then
  return held
end
redis.call('SET', idempotency_key, holder, 'EX', ttl_s)
return holder
