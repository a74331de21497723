-- A worker adds the jobs that have ended there to the counts of its pool.
-- Sent twice, the second adds nothing.
local ended_key, call_key = KEYS[1], KEYS[2]
local call_ttl_s = ARGV[1] -- how long it is known that this call was made
local ttl_s = ARGV[2]
-- The rest of ARGV: fields, each with the number to add.

if not redis.call('SET', call_key, 1, 'NX', 'EX', call_ttl_s) then
  return 0
end
for i = 3, #ARGV, 2 do
  redis.call('HINCRBY', ended_key, ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', ended_key, ttl_s)
return 1
