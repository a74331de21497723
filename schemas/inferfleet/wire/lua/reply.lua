-- Tell a client that a job of its has ended. More than one line for a job does no harm.
-- KEYS reply stream
-- ARGV length to keep, ttl_s, job, state
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'job', ARGV[3], 'state', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
