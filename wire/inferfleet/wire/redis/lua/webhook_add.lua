-- Add an endpoint for webhooks.
-- Returns 1, or 0 if the tenant has too many. Sent twice, the second changes nothing.
local endpoints_key, endpoint_key = KEYS[1], KEYS[2]
local endpoint = ARGV[1]
local created_ms = ARGV[2]
local most = ARGV[3] -- endpoints of a tenant
-- The rest of ARGV: its fields, each with its value.

if redis.call('ZSCORE', endpoints_key, endpoint) then
  return 1
end
if redis.call('ZCARD', endpoints_key) >= tonumber(most) then
  return 0
end
redis.call('ZADD', endpoints_key, created_ms, endpoint)
redis.call('HSET', endpoint_key, unpack(ARGV, 4))
return 1
