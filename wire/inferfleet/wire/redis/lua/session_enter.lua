-- A turn asks to run in its session.
-- KEYS session, lane, payloads, turns, state, turns that have left
-- ARGV job, payload, on_busy, ttl_s (of a busy session), stale_ms, max_bytes, admitted (1: no limit counts),
--      counted (1: among the turns of its pool that wait), left (when the turn last left its place, as far as the
--      caller knows; '' for never), entry (names this call), how long it is known in s that a turn has left,
--      witness (the job whose message this is; '' if it has none yet)
-- Returns {verdict, owner, payload, unpublished}.
-- Verdicts: 'run' (the session is ours: publish), 'wait' (in the lane), 'busy', 'too_large' (refused),
--           'full' (it would wait, and is not counted: whoever has it counted may ask again),
--           'left' (it has left, 'payload' says when: whoever still submits it may say so and ask again).
-- The payload, if any, is the owner's: its publisher died before it could publish; publish it again. From then
-- on it is 'offered': others than its producer may have published it, so its producer cannot take it back.
-- 'unpublished' is 1 while nobody has said that the owner has a message. 'published' is 0 then; 1 if the owner's
-- own message is in the queue; 2 if that of the 'witness' carries it.
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local left = redis.call('ZSCORE', KEYS[6], ARGV[1]) or ''
if left ~= ARGV[9] then
  -- Most likely a copy of this call that was held up on its way, and the turn is over, or was taken back.
  return {'left', '', left, 0}
end
local s = redis.call('HMGET', KEYS[1], 'owner', 'published', 'owner_since', 'bytes', 'state_bytes', 'witness', 'waiting_bytes',
  'former')
local owner = s[1] or ''
if owner == ARGV[1] then
  redis.call('HSET', KEYS[1], 'entry', ARGV[10])
  return {'run', owner, '', 0}
end
local unpublished, again = 0, ''
-- The witness of the turn in front must not wait behind it: its message is the only one.
if owner ~= '' and (s[2] == '0' or (s[2] == '2' and s[6] == ARGV[1])) then
  unpublished = 1
  if tonumber(s[3]) + tonumber(ARGV[5]) <= now then
    again = redis.call('HGET', KEYS[3], owner) or ''
    redis.call('HSET', KEYS[1], 'offered', 1)
    if ARGV[12] ~= '' and (s[8] or '') == '' then
      redis.call('HSET', KEYS[1], 'former', ARGV[12])
    end
  end
end
local waiting = redis.call('EXISTS', KEYS[3]) == 1 and tonumber(s[7] or 0) or 0
local kept = redis.call('HGET', KEYS[3], ARGV[1])
if kept then
  if owner ~= '' then
    redis.call('HSET', KEYS[1], 'entry', ARGV[10])
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
  if owner ~= '' and ARGV[8] == '0' then
    return {'full', owner, again, unpublished}
  end
else
  -- It was in front before, and its message may be acked. A copy of what was sent then must not begin it.
  redis.call('ZADD', KEYS[6], math.max(now, tonumber(left ~= '' and left or 0) + 1), ARGV[1])
  redis.call('EXPIRE', KEYS[6], ARGV[11])
end
redis.call('HSETNX', KEYS[1], 'created_at', now)
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'waiting_bytes', waiting + #ARGV[2], 'entry', ARGV[10])
-- History and state too: a turn may wait for longer than an idle session lives. No life is made shorter.
local ttl = math.max(redis.call('TTL', KEYS[1]), tonumber(ARGV[4]))
local verdict = 'wait'
if owner == '' then
  verdict = 'run'
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'published', 0, 'owner_since', now, 'fence', '', 'attempt', 0,
    'offered', 0, 'witness', ARGV[12], 'former', '', 'ended', '', 'lost', '', 'revived', '')
else
  redis.call('RPUSH', KEYS[2], ARGV[1])
end
for key = 1, 5 do
  redis.call('EXPIRE', KEYS[key], ttl)
end
return {verdict, owner, again, unpublished}
