-- The owner has a message.
local session_key = KEYS[1]
local job = ARGV[1]
local witness = ARGV[2] -- the job that the message is of: this one if it is in the queue, another if its message carries it
local again = ARGV[3] -- 1: its attempt may have lost it, and should lose it only once

local s = redis.call('HMGET', session_key, 'owner', 'attempt')
if s[1] == job then
  redis.call('HSET', session_key, 'published', job == witness and 1 or 2, 'witness', witness, 'former', '')
  if again == '1' then
    redis.call('HSET', session_key, 'revived', s[2] or 0)
  end
end
return 1
