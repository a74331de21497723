-- The owner's message is in the queue.
-- KEYS session
-- ARGV job
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'published', 1)
end
return 1
