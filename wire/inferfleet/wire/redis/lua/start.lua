-- Begin an attempt: take the fence, or learn why not.
-- KEYS record, journal
-- ARGV started_ms, lease_ms, ttl_s, worker, at (ISO), max_attempts, expires_ms ('' for never), resumable (1 or 0),
--      pool, priority, reply_to, submitted_ms, fence (unique to this call: sent twice, it starts once),
--      alone (1: the caller runs no other suspect), suspect_after, max_deaths,
--      model identity of the caller ('' if it only ends the job), session ('' for none)
-- Returns {verdict, attempt, tokens in the journal, why they cannot be continued ('' if they can), charged, reply_to,
-- model identity of the answer ('' if unknown)}. An attempt that cannot continue has to call 'restart' before it
-- generates; until then the record and the journal keep what they have. 'charged' counts the
-- attempts towards the limit: not those that were given back, and not those that died but brought the answer
-- on, as long as there were fewer than max_deaths of them. 'reply_to' is whoever the record says, since one job may have several messages.
-- Verdicts: 'started', 'cancelled', 'interrupted', 'expired', 'exhausted' (the fence is ours; act on it),
--           'done' (terminal already), 'busy' (another worker's lease is alive, or the pause before a retry is not
--           over; 'attempt' is its rest in ms),
--           'suspect' (it may have killed the workers it ran on: ask again when no other suspect runs).
-- Redis' clock, because the clocks of two workers differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local r = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'charged', 'tokens', 'worker', 'lease', 'cancel', 'fence', 'verdict', 'reply_to',
  'deaths', 'tokens_at_start', 'model_identity', 'past')
local state, attempt, charged, tokens = r[1], tonumber(r[2] or 0), tonumber(r[3] or 0), tonumber(r[4] or 0)
local reply_to = r[10] or ARGV[11]
local deaths = tonumber(r[11] or 0)
local lease = tonumber(r[6] or 0)
local identity = r[13] or ''
local begun = r[8] == ARGV[13] or r[8] == ARGV[13] .. '+restarted'
-- A copy of this call that was held up on its way: the attempt it began is over.
local past = r[14] or ' '
local late = r[14] and string.find(past, ' ' .. ARGV[13] .. ' ', 1, true)
local restart = ''
if tokens > 0 then
  if ARGV[8] == '0' then
    restart = 'not_resumable'
  elseif ARGV[17] ~= '' and identity ~= ARGV[17] then
    restart = 'another_model'
  end
end
if not state then
  -- Published by another AMQP client, or Redis lost its data: the message is the record.
  redis.call('HSET', KEYS[1], 'pool', ARGV[9], 'priority', ARGV[10], 'reply_to', ARGV[11], 'submitted_at', ARGV[12])
  if ARGV[18] ~= '' then
    redis.call('HSET', KEYS[1], 'session', ARGV[18])
  end
elseif state == 'running' then
  if begun then
    return {r[9], attempt, tokens, r[9] == 'started' and restart or '', charged, reply_to, identity}
  end
  if late or (r[5] ~= ARGV[4] and lease > now) then
    return {'busy', math.max(0, lease - now), 0, '', charged, reply_to, ''}
  end
  -- Its worker is gone without a word. What it added counts for it only if it is kept.
  deaths = deaths + 1
  if tokens > tonumber(r[12] or 0) and ARGV[8] == '1' and restart == '' then
    charged = charged - 1
  end
elseif state ~= 'queued' then
  return {'done', attempt, 0, '', charged, reply_to, ''}
elseif begun or late then
  return {'busy', 0, 0, '', charged, reply_to, ''}
elseif lease > now and not r[7] then
  return {'busy', lease - now, 0, '', charged, reply_to, ''}
end

local verdict = 'started'
if r[7] then
  verdict = r[7] == 'interrupt' and 'interrupted' or 'cancelled'
elseif (attempt == 0 or r[9] == 'expired') and ARGV[7] ~= '' and tonumber(ARGV[7]) < now then
  verdict = 'expired'
elseif charged >= tonumber(ARGV[6]) or deaths >= tonumber(ARGV[16]) then
  verdict = 'exhausted'
elseif charged >= tonumber(ARGV[15]) and ARGV[14] == '0' then
  return {'suspect', attempt, 0, '', charged, reply_to, ''}
end

attempt = attempt + 1
if verdict == 'started' then
  charged = charged + 1
  if restart == '' then
    if ARGV[17] ~= '' then
      identity = ARGV[17]
    end
    redis.call('XADD', KEYS[2], '*', 'entry', '{"kind":"running","at":"' .. ARGV[5] .. '","attempt":' .. attempt
      .. ',"worker_id":"' .. ARGV[4] .. '","resumed_from":' .. tokens
      .. (identity ~= '' and ',"model_identity":"' .. identity .. '"' or '') .. '}')
  end
else
  restart = ''
end
redis.call('HSET', KEYS[1], 'state', 'running', 'attempt', attempt, 'charged', charged, 'tokens', tokens,
  'worker', ARGV[4], 'lease', now + tonumber(ARGV[2]), 'lease_ms', ARGV[2], 'started_at', ARGV[1],
  'fence', ARGV[13], 'verdict', verdict, 'deaths', deaths, 'tokens_at_start', tokens, 'model_identity', identity)
if r[8] then
  -- Only the last of them: a copy is not held up for longer.
  redis.call('HSET', KEYS[1], 'past', string.sub(past .. string.gsub(r[8], '%+restarted$', '') .. ' ', -2000))
end
-- The two expire together, unless one of them was lost and is a new one by now.
if not state or redis.call('TTL', KEYS[2]) < ARGV[3] / 2 then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return {verdict, attempt, tokens, restart, charged, reply_to, identity}
