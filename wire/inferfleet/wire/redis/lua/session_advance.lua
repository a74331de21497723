-- A turn is over, or its producer takes it back: let the next one run.
-- Returns {verdict, payload of the turn to publish or '', routing key of the worker that has the history in its cache
-- or '', turns whose payload Redis has lost...}. Sent twice, the second gives the same.
-- Verdicts: 'over'; with undo also 'published', 'offered' and 'entered' (somebody has entered since). Nothing is done
--           but with 'over'.
local session_key, lane_key, payloads_key, turns_key, state_key, left_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local job = ARGV[1]
local default_idle_ttl_s = ARGV[2]
local witness = ARGV[3] -- the job whose message comes again until the next has one of its own
local undo = ARGV[4] -- 1: only if nobody else has published the turn, or was told to
local known_entry = ARGV[5] -- the session's last entry that the caller knows of; with undo, done only if nobody has entered since
local left_ttl_s = ARGV[6] -- how long it is known that a turn has left

local s = redis.call('HMGET', session_key, 'owner', 'witness', 'published', 'idle_ttl_s', 'lost', 'offered', 'attempt', 'entry',
  'ended', 'former', 'warm', 'created_at')
local owner = s[1] or ''
local warm = s[11] or ''
if undo == '1' then
  if (s[8] or '') ~= known_entry then
    return {'entered', '', ''}
  end
  if owner == job and (s[3] ~= '0' or tonumber(s[7] or 0) > 0) then
    return {'published', '', ''}
  end
  if owner == job and s[6] == '1' then
    return {'offered', '', ''}
  end
end
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- A copy of an earlier call, held up on its way, does not know this moment, and brings the turn back no more.
redis.call('ZADD', left_key, math.max(now, tonumber(redis.call('ZSCORE', left_key, job) or 0) + 1), job)
redis.call('ZREMRANGEBYSCORE', left_key, '-inf', now - left_ttl_s * 1000)
redis.call('EXPIRE', left_key, left_ttl_s)
local lost = {}
local kept = redis.call('HGET', payloads_key, job)
if owner ~= job then
  if redis.call('LREM', lane_key, 0, job) > 0 or kept then
    redis.call('HDEL', payloads_key, job)
    if kept and s[1] then
      redis.call('HINCRBY', session_key, 'waiting_bytes', -#kept)
    end
    kept = nil
  end
  -- Each of these may be the last message that brings the owner: which of them are acked, nobody knows.
  local carriers = {[s[2] or ''] = true, [s[9] or ''] = true, [s[10] or ''] = true}
  if not (carriers[job] or carriers[witness]) then
    return {'over', '', ''}
  end
  for lost_job in string.gmatch(s[5] or '', '%S+') do
    -- Unless it has been submitted again.
    if lost_job ~= owner and redis.call('HEXISTS', payloads_key, lost_job) == 0 then
      table.insert(lost, lost_job)
    end
  end
  if s[3] == '1' then
    return {'over', '', '', unpack(lost)}
  end
  local payload = owner ~= '' and redis.call('HGET', payloads_key, owner) or ''
  if owner == '' or payload ~= '' then
    return {'over', payload, warm, unpack(lost)}
  end
  -- Nobody has published the owner, and nobody can.
  table.insert(lost, owner)
end
if kept then
  redis.call('HDEL', payloads_key, job)
  redis.call('HINCRBY', session_key, 'waiting_bytes', -#kept)
end
redis.call('HDEL', session_key, 'answer')
local next = redis.call('LPOP', lane_key)
local payload = next and redis.call('HGET', payloads_key, next) or ''
while next and payload == '' do
  table.insert(lost, next)
  next = redis.call('LPOP', lane_key)
  payload = next and redis.call('HGET', payloads_key, next) or ''
end
if not next then
  -- Only if the lane was lost. The ids of jobs are in the order in which they were made.
  local waiting = redis.call('HKEYS', payloads_key)
  if #waiting > 0 then
    table.sort(waiting)
    next = waiting[1]
    payload = redis.call('HGET', payloads_key, next)
  end
end
-- Who lets the next turn run may not be who has the message that carried this one.
local former = ''
if s[3] ~= '1' then
  former = s[10] and s[10] ~= '' and s[10] or s[2] or ''
end
redis.call('HSET', session_key, 'owner', next or '', 'witness', witness, 'ended', job, 'former', former,
  'published', 0, 'owner_since', now,
  'fence', '', 'attempt', 0, 'lost', table.concat(lost, ' '), 'offered', next and 1 or 0, 'revived', '')
if not next then
  redis.call('HDEL', session_key, 'forgotten')
  for key = 1, 5 do
    -- Of a session that was deleted only what recognizes repetitions is left.
    redis.call('EXPIRE', KEYS[key], s[12] and (s[4] or default_idle_ttl_s) or left_ttl_s)
  end
end
return {'over', payload, warm, unpack(lost)}
