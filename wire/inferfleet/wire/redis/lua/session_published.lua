-- The owner has a message.
-- KEYS session
-- ARGV job, witness (the job that the message is of: this one if it is in the queue, another if its message carries it),
--      again (1: its attempt may have lost it, and should lose it only once)
local s = redis.call('HMGET', KEYS[1], 'owner', 'attempt')
if s[1] == ARGV[1] then
  redis.call('HSET', KEYS[1], 'published', ARGV[1] == ARGV[2] and 1 or 2, 'witness', ARGV[2], 'former', '')
  if ARGV[3] == '1' then
    redis.call('HSET', KEYS[1], 'revived', s[2] or 0)
  end
end
return 1
