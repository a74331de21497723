-- Tell a client that jobs of its have ended. More than one line for a job does no harm.
-- KEYS reply stream
-- ARGV length to keep, ttl_s, then a job and its state for each line
for i = 3, #ARGV, 2 do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'job', ARGV[i], 'state', ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
