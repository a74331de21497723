-- Watch jobs for their ends, if their tenant has an endpoint for webhooks.
-- Returns 1 if they are watched, else 0. Sent twice, the second changes nothing.
local endpoints_key, watched_key = KEYS[1], KEYS[2]
local look_ms = ARGV[1] -- when to look at the jobs
-- The rest of ARGV: the jobs.

if redis.call('ZCARD', endpoints_key) == 0 then
  return 0
end
for i = 2, #ARGV do
  redis.call('ZADD', watched_key, 'NX', look_ms, ARGV[i])
end
return 1
