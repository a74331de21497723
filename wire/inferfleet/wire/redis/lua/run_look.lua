-- Take the runs at which it is time to look, and set when to look at them again.
-- Returns their ids. Sent twice, the second may return none: they are looked at again then.
local open_key = KEYS[1]
local now_ms = ARGV[1]
local next_ms = ARGV[2]
local most = ARGV[3]

local ids = redis.call('ZRANGE', open_key, '-inf', now_ms, 'BYSCORE', 'LIMIT', 0, most)
for _, id in ipairs(ids) do
  redis.call('ZADD', open_key, next_ms, id)
end
return ids
