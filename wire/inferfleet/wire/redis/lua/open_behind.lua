-- Read jobs from the index of a pool's unfinished jobs, the oldest first, after a place. Changes nothing.
-- Returns how many jobs are before the place, then the id and the score of each job after it. Jobs of one
-- millisecond are in the order of their ids.
local open_key = KEYS[1]
local behind_ms = ARGV[1]
local behind_id = ARGV[2]
local limit = ARGV[3]

-- Search for the rank of the first job after the place: the job with that id may have left the index. Ids are UUIDs,
-- so Lua compares them as Redis orders them.
local low, high = 0, redis.call('ZCARD', open_key)
while low < high do
  local middle = math.floor((low + high) / 2)
  local id, score = unpack(redis.call('ZRANGE', open_key, middle, middle, 'WITHSCORES'))
  local later_ms = score - behind_ms
  if later_ms < 0 or (later_ms == 0 and id <= behind_id) then
    low = middle + 1
  else
    high = middle
  end
end
local answer = redis.call('ZRANGE', open_key, low, low + limit - 1, 'WITHSCORES')
table.insert(answer, 1, low)
return answer
