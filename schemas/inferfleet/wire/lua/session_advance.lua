-- A turn is over, or its producer takes it back: let the next one run.
-- KEYS session, lane, payloads, turns, state, record of the job, turns of its pool that wait in lanes
-- ARGV job, default_idle_ttl_s, witness (the job whose message comes again until the next has one of its own),
--      undo (1: only if nobody else has published the turn, or was told to)
-- Returns {verdict, payload of the turn to publish or '', turns whose payload Redis has lost...}. Sent twice, the
-- second gives the same.
-- Verdicts: 'over'; 'unfinished' (by its record the job has not ended); with undo also 'published' and 'offered'.
--           Nothing is done but with 'over'.
local r = redis.call('HMGET', KEYS[6], 'state', 'closed')
if ARGV[4] == '1' then
  if r[1] and not r[2] then
    -- Somebody submits it anew.
    return {'offered', ''}
  end
elseif r[1] == 'queued' or r[1] == 'running' then
  return {'unfinished', ''}
end
local s = redis.call('HMGET', KEYS[1], 'owner', 'witness', 'published', 'idle_ttl_s', 'lost', 'offered', 'attempt')
local owner = s[1] or ''
local lost = {}
local kept = redis.call('HGET', KEYS[3], ARGV[1])
if owner ~= ARGV[1] then
  if redis.call('LREM', KEYS[2], 0, ARGV[1]) > 0 or kept then
    redis.call('HDEL', KEYS[3], ARGV[1])
    redis.call('ZREM', KEYS[7], ARGV[1])
    if kept and s[1] then
      redis.call('HINCRBY', KEYS[1], 'waiting_bytes', -#kept)
    end
    return {'over', ''}
  end
  if s[2] ~= ARGV[3] or s[3] == '1' then
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
elseif ARGV[4] == '1' and (s[3] ~= '0' or tonumber(s[7] or 0) > 0) then
  return {'published', ''}
elseif ARGV[4] == '1' and s[6] == '1' then
  return {'offered', ''}
end
if kept then
  redis.call('HDEL', KEYS[3], ARGV[1])
  redis.call('HINCRBY', KEYS[1], 'waiting_bytes', -#kept)
end
redis.call('HDEL', KEYS[1], 'answer')
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
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
redis.call('HSET', KEYS[1], 'owner', next or '', 'witness', ARGV[3], 'published', 0, 'owner_since', now,
  'fence', '', 'attempt', 0, 'lost', table.concat(lost, ' '), 'offered', next and 1 or 0, 'revived', '')
if not next then
  for key = 1, 5 do
    redis.call('EXPIRE', KEYS[key], s[4] or ARGV[2])
  end
end
return {'over', payload, unpack(lost)}
