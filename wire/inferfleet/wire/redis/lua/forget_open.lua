-- Take jobs out of the index of unfinished jobs, unless they have entered it again since the caller read it.
-- Returns how many.
local open_key = KEYS[1]
-- ARGV: each job, and the score that the caller read.

local gone = 0
for i = 1, #ARGV, 2 do
  local score = redis.call('ZSCORE', open_key, ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[i + 1]) then
    gone = gone + redis.call('ZREM', open_key, ARGV[i])
  end
end
return gone
