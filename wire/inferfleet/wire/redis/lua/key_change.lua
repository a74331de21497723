-- Change what an idempotency key says, or free it, unless somebody else has changed it meanwhile.
-- KEYS key
-- ARGV present holder, new holder ('' frees it), ttl_s
if redis.call('GET', KEYS[1]) == ARGV[1] then
  if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
  end
end
return 1
