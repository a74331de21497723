-- Read jobs from the index of a pool's unfinished jobs, the oldest first. Changes nothing.
-- Returns for each job: its id, its score, and until when its message counts as held by a worker ('' if by none).
local open_key, held_key = KEYS[1], KEYS[2]
local from_ms = ARGV[1]
local below_ms = ARGV[2]
local limit = ARGV[3]

local found = redis.call('ZRANGEBYSCORE', open_key, from_ms, '(' .. below_ms, 'WITHSCORES', 'LIMIT', 0, limit)
local answer = {}
for i = 1, #found, 2 do
  table.insert(answer, found[i])
  table.insert(answer, found[i + 1])
  table.insert(answer, redis.call('ZSCORE', held_key, found[i]) or '')
end
return answer
