-- A worker says which messages it has, and what it was delivered; and sweeps its pool, if that is due.
-- A *front* {entered, delivered} says that at the moment 'delivered' the queue had no job of its priority that had
-- entered the index earlier than 'entered'. The latest front of each priority counts, as long as it is known which
-- messages were held since.
-- Returns {1 if the caller has to sweep, front and cursor of priority 0, of priority 1, ...}: a front is
-- 'entered delivered', '' if there is none; a cursor is where the last sweep stopped, '' if it came to the end.
-- Sent twice, the second answers as the first.
local sweep_key, held_key = KEYS[1], KEYS[2]
local sweeper = ARGV[1] -- unique to this call
local lease_ms = ARGV[2] -- nobody else sweeps for so long
local held_ms = ARGV[3] -- how long the caller's messages count as held
local fronts = ARGV[4] -- 'priority entered delivered;' for each front
local ttl_s = ARGV[5]
-- The rest of ARGV: the jobs whose messages the caller has.

-- Redis' clock, because the clocks of two workers differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
for i = 6, #ARGV do
  redis.call('ZADD', held_key, now + tonumber(held_ms), ARGV[i])
end
-- A message that was held after a front was seen may be back in the queue. So a front counts only as long as nobody
-- forgets what was held since, not even during the caller's sweep.
redis.call('ZREMRANGEBYSCORE', held_key, '-inf', now - 8 * tonumber(held_ms))
redis.call('EXPIRE', held_key, ttl_s)
local counts_from = now - 7 * tonumber(held_ms)
for priority, entered, delivered in string.gmatch(fronts, '(%d+) (%d+) (%d+);') do
  local known = redis.call('HGET', sweep_key, 'front:' .. priority) or ''
  local known_entered, known_delivered = string.match(known, '^(%d+) (%d+)$')
  -- What is from the future is of a clock that was set back since.
  local later = not known_entered
    or tonumber(known_entered) < tonumber(entered)
    or tonumber(known_delivered) < counts_from
    or math.max(tonumber(known_entered), tonumber(known_delivered)) > now
  if later and tonumber(entered) <= now and tonumber(delivered) >= counts_from then
    redis.call('HSET', sweep_key, 'front:' .. priority, entered .. ' ' .. delivered)
  end
end
redis.call('EXPIRE', sweep_key, ttl_s)
local swept = redis.call('HMGET', sweep_key, 'sweeper', 'until')
local rest_ms = tonumber(swept[2] or 0) - now
if swept[1] ~= sweeper then
  if rest_ms > 0 and rest_ms <= tonumber(lease_ms) then
    return {0}
  end
  redis.call('HSET', sweep_key, 'sweeper', sweeper, 'until', now + tonumber(lease_ms))
end
local answer = {1}
for priority = 0, 9 do
  local s = redis.call('HMGET', sweep_key, 'front:' .. priority, 'cursor:' .. priority)
  local delivered = string.match(s[1] or '', ' (%d+)$')
  table.insert(answer, delivered and tonumber(delivered) >= counts_from and s[1] or '')
  table.insert(answer, s[2] or '')
end
return answer
