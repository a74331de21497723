-- Change what an idempotency key says, or free it, unless somebody else has changed it meanwhile.
local idempotency_key = KEYS[1]
local present_holder = ARGV[1]
local new_holder = ARGV[2] -- '' frees it
local ttl_s = ARGV[3]

if redis.call('GET', idempotency_key) == present_holder then
  if new_holder == '' then
    redis.call('DEL', idempotency_key)
  else
    redis.call('SET', idempotency_key, new_holder, 'EX', ttl_s)
  end
end
return 1
