-- A turn asks to run in its session.
-- KEYS session, lane, payloads, turns, state
-- ARGV job, payload, on_busy, ttl_s (of a busy session), stale_ms, max_bytes
-- Returns {verdict, owner, payload, unpublished}.
-- Verdicts: 'run' (the session is ours: publish), 'wait' (in the lane), 'busy' (refused), 'too_large'.
-- The payload, if any, is the owner's: its publisher died before it could publish; publish it again. From then
-- on it is 'offered': others than its producer may have published it, so its producer cannot take it back.
-- 'unpublished' is 1 while nobody has said that the owner's message is in the queue.
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local s = redis.call('HMGET', KEYS[1], 'owner', 'published', 'owner_since', 'bytes', 'state_bytes')
local owner = s[1] or ''
if owner == ARGV[1] then
  return {'run', owner, '', 0}
end
local unpublished, again = 0, ''
if owner ~= '' and s[2] == '0' then
  unpublished = 1
  if tonumber(s[3]) + tonumber(ARGV[5]) < now then
    again = redis.call('HGET', KEYS[3], owner) or ''
    redis.call('HSET', KEYS[1], 'offered', 1)
  end
end
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then
  if owner ~= '' then
    return {'wait', owner, again, unpublished}
  end
  -- Redis lost the session, and not its lane: without an owner nobody would ever let this turn run.
  redis.call('LREM', KEYS[2], 0, ARGV[1])
end
if tonumber(s[4] or 0) + tonumber(s[5] or 0) + #ARGV[2] > tonumber(ARGV[6]) then
  return {'too_large', owner, again, unpublished}
end
if owner ~= '' and ARGV[3] == 'reject' then
  return {'busy', owner, again, unpublished}
end
redis.call('HSETNX', KEYS[1], 'created_at', now)
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
local verdict = 'wait'
if owner == '' then
  verdict = 'run'
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'published', 0, 'owner_since', now, 'fence', '', 'attempt', 0,
    'offered', 0)
else
  redis.call('RPUSH', KEYS[2], ARGV[1])
end
-- History and state too: a turn may wait for longer than an idle session lives.
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ARGV[4])
end
return {verdict, owner, again, unpublished}
