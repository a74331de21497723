-- An attempt of the owner's turn begins: it takes the session's fence.
-- Returns {verdict, answer, turns, state_version, max_history_tokens}.
-- Verdicts: 'begun', 'answered' (an earlier attempt added the turn and died; 'answer' is its answer),
--           'taken' (another turn owns the session), 'fenced' (a later attempt has the turn),
--           'left' (the turn has left, 'answer' says when: whoever still runs it may say so and ask again),
--           'lost' (the record counts other turns than there are; 'answer' is how many there are).
local session_key, lane_key, payloads_key, turns_key, state_key, left_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local job = ARGV[1]
local fence = ARGV[2]
local ttl_s = ARGV[3]
local attempt = ARGV[4]
local witness = ARGV[5] -- the job whose message this is; another's carries the turn
local known_left = ARGV[6] -- when the turn last left its place, as far as the caller knows; '' for never

local left = redis.call('ZSCORE', left_key, job) or ''
if left ~= known_left then
  -- Most likely a copy of this call that was held up on its way, and the turn is over.
  return {'left', left, 0, 0, ''}
end
local s = redis.call('HMGET', session_key, 'owner', 'last_turn', 'answer', 'turns', 'state_version', 'max_history_tokens',
  'attempt')
local owner = s[1] or ''
if owner == '' then
  -- Redis lost the session, or the job came from another AMQP client: the turn owns it from here on.
  -- Redis' clock, because the clocks of two machines differ.
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  redis.call('HSET', session_key, 'owner', job, 'owner_since', now, 'offered', 0, 'lost', '', 'revived', '',
    'ended', '')
  redis.call('HSETNX', session_key, 'created_at', now)
elseif owner ~= job then
  return {'taken', '', 0, 0, ''}
elseif tonumber(s[7] or 0) > tonumber(attempt) then
  return {'fenced', '', 0, 0, ''}
end
redis.call('HSET', session_key, 'fence', fence, 'attempt', attempt, 'published', job == witness and 1 or 2,
  'witness', witness, 'former', '')
local ttl = math.max(redis.call('TTL', session_key), tonumber(ttl_s))
for key = 1, 5 do
  redis.call('EXPIRE', KEYS[key], ttl)
end
if s[2] == job and s[3] then
  return {'answered', s[3], 0, 0, ''}
end
local present = redis.call('LLEN', turns_key)
if present ~= tonumber(s[4] or 0) then
  return {'lost', tostring(present), tonumber(s[4] or 0), 0, ''}
end
return {'begun', '', tonumber(s[4] or 0), tonumber(s[5] or 0), s[6] or ''}
