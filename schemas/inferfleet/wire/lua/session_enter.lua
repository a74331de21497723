-- A turn asks to run in its session.
-- KEYS session, lane, payloads, turns, state, record of the job, turns of its pool that wait in lanes, pool
-- ARGV job, payload, on_busy, ttl_s (of a busy session), stale_ms, max_bytes, admitted (1: no limit counts)
-- Returns {verdict, owner, payload, unpublished}.
-- Verdicts: 'run' (the session is ours: publish), 'wait' (in the lane), 'busy', 'too_large', 'full' (refused),
--           'begun' (the job is not one that waits: it runs or has ended), 'missing' (it has no record).
-- The payload, if any, is the owner's: its publisher died before it could publish; publish it again. From then
-- on it is 'offered': others than its producer may have published it, so its producer cannot take it back.
-- 'unpublished' is 1 while nobody has said that the owner has a message. 'published' is 0 then; 1 if the owner's
-- own message is in the queue; 2 if that of the 'witness' carries it.
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local s = redis.call('HMGET', KEYS[1], 'owner', 'published', 'owner_since', 'bytes', 'state_bytes', 'witness', 'waiting_bytes')
local owner = s[1] or ''
if owner == ARGV[1] then
  return {'run', owner, '', 0}
end
local r = redis.call('HMGET', KEYS[6], 'state', 'attempt', 'closed')
if not r[1] then
  return {'missing', owner, '', 0}
end
if r[1] ~= 'queued' or (r[3] and r[2] == '0') then
  -- Or a copy of this call that was held up on its way: its turn has ended, or was taken back.
  return {'begun', owner, '', 0}
end
local unpublished, again = 0, ''
-- The witness of the turn in front must not wait behind it: its message is the only one.
if owner ~= '' and (s[2] == '0' or (s[2] == '2' and s[6] == ARGV[1])) then
  unpublished = 1
  if tonumber(s[3]) + tonumber(ARGV[5]) <= now then
    again = redis.call('HGET', KEYS[3], owner) or ''
    redis.call('HSET', KEYS[1], 'offered', 1)
  end
end
local waiting = redis.call('EXISTS', KEYS[3]) == 1 and tonumber(s[7] or 0) or 0
local kept = redis.call('HGET', KEYS[3], ARGV[1])
if kept then
  if owner ~= '' then
    return {'wait', owner, again, unpublished}
  end
  -- Redis lost the session, and not its lane: without an owner nobody would ever let this turn run.
  redis.call('LREM', KEYS[2], 0, ARGV[1])
  waiting = waiting - #kept
end
if ARGV[7] == '0' then
  if tonumber(s[4] or 0) + tonumber(s[5] or 0) + waiting + #ARGV[2] > tonumber(ARGV[6]) then
    return {'too_large', owner, again, unpublished}
  end
  if owner ~= '' and ARGV[3] == 'reject' then
    return {'busy', owner, again, unpublished}
  end
  local limit = owner ~= '' and redis.call('HGET', KEYS[8], 'queue_max_length')
  if limit then
    -- Those whose lane has expired wait no more.
    redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', now)
    if redis.call('ZCARD', KEYS[7]) >= tonumber(limit) then
      return {'full', owner, again, unpublished}
    end
  end
end
redis.call('HSETNX', KEYS[1], 'created_at', now)
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'waiting_bytes', waiting + #ARGV[2])
-- History and state too: a turn may wait for longer than an idle session lives. No life is made shorter.
local ttl = math.max(redis.call('TTL', KEYS[1]), tonumber(ARGV[4]))
local verdict = 'wait'
if owner == '' then
  verdict = 'run'
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'published', 0, 'owner_since', now, 'fence', '', 'attempt', 0,
    'offered', 0, 'witness', '', 'lost', '', 'revived', '')
  redis.call('ZREM', KEYS[7], ARGV[1])
else
  redis.call('RPUSH', KEYS[2], ARGV[1])
  redis.call('ZADD', KEYS[7], now + ttl * 1000, ARGV[1])
  redis.call('EXPIRE', KEYS[7], math.max(redis.call('TTL', KEYS[7]), ttl))
end
for key = 1, 5 do
  redis.call('EXPIRE', KEYS[key], ttl)
end
return {verdict, owner, again, unpublished}
