-- An attempt of the owner's turn begins: it takes the session's fence.
-- KEYS session, lane, payloads, turns, state, turns that have left
-- ARGV job, fence, ttl_s, attempt, witness (the job whose message this is; another's carries the turn),
--      left (when the turn last left its place, as far as the caller knows; '' for never)
-- Returns {verdict, answer, turns, state_version, max_history_tokens}.
-- Verdicts: 'begun', 'answered' (an earlier attempt added the turn and died; 'answer' is its answer),
--           'taken' (another turn owns the session), 'fenced' (a later attempt has the turn),
--           'left' (the turn has left, 'answer' says when: whoever still runs it may say so and ask again),
--           'lost' (the record counts other turns than there are; 'answer' is how many there are).
local left = redis.call('ZSCORE', KEYS[6], ARGV[1]) or ''
if left ~= ARGV[6] then
  -- Most likely a copy of this call that was held up on its way, and the turn is over.
  return {'left', left, 0, 0, ''}
end
local s = redis.call('HMGET', KEYS[1], 'owner', 'last_turn', 'answer', 'turns', 'state_version', 'max_history_tokens',
  'attempt')
local owner = s[1] or ''
if owner == '' then
  -- Redis lost the session, or the job came from another AMQP client: the turn owns it from here on.
  -- Redis' clock, because the clocks of two machines differ.
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'owner_since', now, 'offered', 0, 'lost', '', 'revived', '',
    'ended', '')
  redis.call('HSETNX', KEYS[1], 'created_at', now)
elseif owner ~= ARGV[1] then
  return {'taken', '', 0, 0, ''}
elseif tonumber(s[7] or 0) > tonumber(ARGV[4]) then
  return {'fenced', '', 0, 0, ''}
end
redis.call('HSET', KEYS[1], 'fence', ARGV[2], 'attempt', ARGV[4], 'published', ARGV[1] == ARGV[5] and 1 or 2,
  'witness', ARGV[5], 'former', '')
local ttl = math.max(redis.call('TTL', KEYS[1]), tonumber(ARGV[3]))
for key = 1, 5 do
  redis.call('EXPIRE', KEYS[key], ttl)
end
if s[2] == ARGV[1] and s[3] then
  return {'answered', s[3], 0, 0, ''}
end
local present = redis.call('LLEN', KEYS[4])
if present ~= tonumber(s[4] or 0) then
  return {'lost', tostring(present), tonumber(s[4] or 0), 0, ''}
end
return {'begun', '', tonumber(s[4] or 0), tonumber(s[5] or 0), s[6] or ''}
