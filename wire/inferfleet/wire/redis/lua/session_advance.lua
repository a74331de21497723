-- A turn is over, or its producer takes it back: let the next one run.
-- KEYS session, lane, payloads, turns, state, turns that have left
-- ARGV job, default_idle_ttl_s, witness (the job whose message comes again until the next has one of its own),
--      undo (1: only if nobody else has published the turn, or was told to), the session's last entry that the caller
--      knows of (with undo: done only if nobody has entered since), how long it is known in s that a turn has left
-- Returns {verdict, payload of the turn to publish or '', turns whose payload Redis has lost...}. Sent twice, the
-- second gives the same.
-- Verdicts: 'over'; with undo also 'published', 'offered' and 'entered' (somebody has entered since). Nothing is done
--           but with 'over'.
local s = redis.call('HMGET', KEYS[1], 'owner', 'witness', 'published', 'idle_ttl_s', 'lost', 'offered', 'attempt', 'entry',
  'ended', 'former')
local owner = s[1] or ''
if ARGV[4] == '1' then
  if (s[8] or '') ~= ARGV[5] then
    return {'entered', ''}
  end
  if owner == ARGV[1] and (s[3] ~= '0' or tonumber(s[7] or 0) > 0) then
    return {'published', ''}
  end
  if owner == ARGV[1] and s[6] == '1' then
    return {'offered', ''}
  end
end
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- A copy of an earlier call, held up on its way, does not know this moment, and brings the turn back no more.
redis.call('ZADD', KEYS[6], math.max(now, tonumber(redis.call('ZSCORE', KEYS[6], ARGV[1]) or 0) + 1), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now - ARGV[6] * 1000)
redis.call('EXPIRE', KEYS[6], ARGV[6])
local lost = {}
local kept = redis.call('HGET', KEYS[3], ARGV[1])
if owner ~= ARGV[1] then
  if redis.call('LREM', KEYS[2], 0, ARGV[1]) > 0 or kept then
    redis.call('HDEL', KEYS[3], ARGV[1])
    if kept and s[1] then
      redis.call('HINCRBY', KEYS[1], 'waiting_bytes', -#kept)
    end
    return {'over', ''}
  end
  -- Each of these may be the last message that brings the owner: which of them are acked, nobody knows.
  local carriers = {[s[2] or ''] = true, [s[9] or ''] = true, [s[10] or ''] = true}
  if s[3] == '1' or not (carriers[ARGV[1]] or carriers[ARGV[3]]) then
    return {'over', ''}
  end
  for job in string.gmatch(s[5] or '', '%S+') do
    table.insert(lost, job)
  end
  local payload = owner ~= '' and redis.call('HGET', KEYS[3], owner) or ''
  if owner == '' or payload ~= '' then
    return {'over', payload, unpack(lost)}
  end
  -- Nobody has published the owner, and nobody can.
  table.insert(lost, owner)
end
if kept then
  redis.call('HDEL', KEYS[3], ARGV[1])
  redis.call('HINCRBY', KEYS[1], 'waiting_bytes', -#kept)
end
redis.call('HDEL', KEYS[1], 'answer')
local next = redis.call('LPOP', KEYS[2])
local payload = next and redis.call('HGET', KEYS[3], next) or ''
while next and payload == '' do
  table.insert(lost, next)
  next = redis.call('LPOP', KEYS[2])
  payload = next and redis.call('HGET', KEYS[3], next) or ''
end
if not next then
  -- Only if the lane was lost. The ids of jobs are in the order in which they were made.
  local waiting = redis.call('HKEYS', KEYS[3])
  if #waiting > 0 then
    table.sort(waiting)
    next = waiting[1]
    payload = redis.call('HGET', KEYS[3], next)
  end
end
-- Who lets the next turn run may not be who has the message that carried this one.
local former = ''
if s[3] ~= '1' then
  former = s[10] and s[10] ~= '' and s[10] or s[2] or ''
end
redis.call('HSET', KEYS[1], 'owner', next or '', 'witness', ARGV[3], 'ended', ARGV[1], 'former', former,
  'published', 0, 'owner_since', now,
  'fence', '', 'attempt', 0, 'lost', table.concat(lost, ' '), 'offered', next and 1 or 0, 'revived', '')
if not next then
  for key = 1, 5 do
    redis.call('EXPIRE', KEYS[key], s[4] or ARGV[2])
  end
end
return {'over', payload, unpack(lost)}
