-- Tell a client that jobs of its have ended. More than one line for a job does no harm.
local reply_key = KEYS[1]
local length = ARGV[1] -- to keep
local ttl_s = ARGV[2]
-- The rest of ARGV: a job and its state for each line.

for i = 3, #ARGV, 2 do
  redis.call('XADD', reply_key, 'MAXLEN', '~', length, '*', 'job', ARGV[i], 'state', ARGV[i + 1])
end
redis.call('EXPIRE', reply_key, ttl_s)
return 1
