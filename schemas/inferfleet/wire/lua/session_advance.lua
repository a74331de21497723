-- A turn is over, or its producer takes it back: let the next one run.
-- KEYS session, lane, payloads, turns, state
-- ARGV job, default_idle_ttl_s, witness (the job whose message comes again until the next is published),
--      undo (1: only if nobody else has published the turn, or was told to)
-- Returns {verdict, payload of the turn to publish or '', turns whose payload Redis has lost...}. Sent twice, the
-- second gives the same.
-- Verdicts: 'over'; with undo also 'published' and 'offered', and nothing is done then.
local s = redis.call('HMGET', KEYS[1], 'owner', 'witness', 'published', 'idle_ttl_s', 'lost', 'offered', 'attempt')
local owner = s[1] or ''
local lost = {}
if owner ~= ARGV[1] then
  if redis.call('LREM', KEYS[2], 0, ARGV[1]) + redis.call('HDEL', KEYS[3], ARGV[1]) > 0 then
    return {'over', ''}
  end
  if s[2] ~= ARGV[3] or s[3] ~= '0' then
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
redis.call('HDEL', KEYS[3], ARGV[1])
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
  'fence', '', 'attempt', 0, 'lost', table.concat(lost, ' '), 'offered', next and 1 or 0)
if not next then
  for _, key in ipairs(KEYS) do
    redis.call('EXPIRE', key, s[4] or ARGV[2])
  end
end
return {'over', payload, unpack(lost)}
