-- A turn asks to run in its session.
-- Returns {verdict, owner, payload, unpublished, warm}: 'warm' is the routing key of the worker that has the history in
-- its cache, or ''.
-- Verdicts: 'run' (the session is ours: publish), 'wait' (in the lane), 'busy', 'too_large' (refused),
--           'full' (it would wait, and is not counted: whoever has it counted may ask again),
--           'left' (it has left, 'payload' says when: whoever still submits it may say so and ask again).
-- The payload, if any, is the owner's: its publisher died before it could publish; publish it again. From then
-- on it is 'offered': others than its producer may have published it, so its producer cannot take it back.
-- 'unpublished' is 1 while nobody has said that the owner has a message. 'published' is 0 then; 1 if the owner's
-- own message is in the queue; 2 if that of the 'witness' carries it.
local session_key, lane_key, payloads_key, turns_key, state_key, left_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local job = ARGV[1]
local payload = ARGV[2]
local on_busy = ARGV[3]
local ttl_s = ARGV[4] -- of a busy session
local stale_ms = ARGV[5]
local max_bytes = ARGV[6]
local admitted = ARGV[7] -- 1: no limit counts
local counted = ARGV[8] -- 1: among the turns of its pool that wait
local known_left = ARGV[9] -- when the turn last left its place, as far as the caller knows; '' for never
local entry = ARGV[10] -- names this call
local left_ttl_s = ARGV[11] -- how long it is known that a turn has left
local witness = ARGV[12] -- the job whose message this is; '' if it has none yet

-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local left = redis.call('ZSCORE', left_key, job) or ''
if left ~= known_left then
  -- Most likely a copy of this call that was held up on its way, and the turn is over, or was taken back.
  return {'left', '', left, 0, ''}
end
local s = redis.call('HMGET', session_key, 'owner', 'published', 'owner_since', 'bytes', 'state_bytes', 'witness', 'waiting_bytes',
  'former', 'warm')
local owner = s[1] or ''
local warm = s[9] or ''
if owner == job then
  redis.call('HSET', session_key, 'entry', entry)
  return {'run', owner, '', 0, warm}
end
local unpublished, again = 0, ''
-- The witness of the turn in front must not wait behind it: its message is the only one.
if owner ~= '' and (s[2] == '0' or (s[2] == '2' and s[6] == job)) then
  unpublished = 1
  if tonumber(s[3]) + tonumber(stale_ms) <= now then
    again = redis.call('HGET', payloads_key, owner) or ''
    redis.call('HSET', session_key, 'offered', 1)
    if witness ~= '' and (s[8] or '') == '' then
      redis.call('HSET', session_key, 'former', witness)
    end
  end
end
local waiting = redis.call('EXISTS', payloads_key) == 1 and tonumber(s[7] or 0) or 0
local kept = redis.call('HGET', payloads_key, job)
if kept then
  if owner ~= '' then
    redis.call('HSET', session_key, 'entry', entry)
    return {'wait', owner, again, unpublished, warm}
  end
  -- Redis lost the session, and not its lane: without an owner nobody would ever let this turn run.
  redis.call('LREM', lane_key, 0, job)
  waiting = waiting - #kept
end
if admitted == '0' then
  if tonumber(s[4] or 0) + tonumber(s[5] or 0) + waiting + #payload > tonumber(max_bytes) then
    return {'too_large', owner, again, unpublished, warm}
  end
  if owner ~= '' and on_busy == 'reject' then
    return {'busy', owner, again, unpublished, warm}
  end
  if owner ~= '' and counted == '0' then
    return {'full', owner, again, unpublished, warm}
  end
else
  -- It was in front before, and its message may be acked. A copy of what was sent then must not begin it.
  redis.call('ZADD', left_key, math.max(now, tonumber(left ~= '' and left or 0) + 1), job)
  redis.call('EXPIRE', left_key, left_ttl_s)
end
redis.call('HSETNX', session_key, 'created_at', now)
redis.call('HSET', payloads_key, job, payload)
redis.call('HSET', session_key, 'waiting_bytes', waiting + #payload, 'entry', entry)
-- History and state too: a turn may wait for longer than an idle session lives. No life is made shorter.
local ttl = math.max(redis.call('TTL', session_key), tonumber(ttl_s))
local verdict = 'wait'
if owner == '' then
  verdict = 'run'
  redis.call('HSET', session_key, 'owner', job, 'published', 0, 'owner_since', now, 'fence', '', 'attempt', 0,
    'offered', 0, 'witness', witness, 'former', '', 'ended', '', 'lost', '', 'revived', '')
else
  redis.call('RPUSH', lane_key, job)
end
for key = 1, 5 do
  redis.call('EXPIRE', KEYS[key], ttl)
end
return {verdict, owner, again, unpublished, warm}
