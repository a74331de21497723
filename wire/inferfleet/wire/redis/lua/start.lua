-- Begin an attempt: take the fence, or learn why not.
-- Returns {verdict, attempt, tokens in the journal, why they cannot be continued ('' if they can), charged, reply_to,
-- model identity of the answer ('' if unknown), kept (1: Redis has the request), first (when the record was made of a job
-- that starts for the first time, or when it might start if that is later; '' else)}. The last two only if the fence is
-- ours, or with 'early'.
-- An attempt that cannot continue has to call 'restart' before it
-- generates; until then the record and the journal keep what they have. 'charged' counts the
-- attempts towards the limit: not those that were given back, and not those that died but brought the answer
-- on, as long as there were fewer than max_deaths of them. 'reply_to' is whoever the record says, since one job may have several messages.
-- Verdicts: 'started', 'cancelled', 'interrupted', 'expired', 'exhausted' (the fence is ours; act on it),
--           'done' (terminal already), 'busy' (another worker's lease is alive, or the pause before a retry is not
--           over; 'attempt' is its rest in ms),
--           'early' (it may not start yet; 'attempt' is the rest in ms. It has a record now),
--           'suspect' (it may have killed the workers it ran on: ask again when no other suspect runs).
local job_key, journal_key, request_key = KEYS[1], KEYS[2], KEYS[3]
local started_ms = ARGV[1]
local lease_ms = ARGV[2]
local ttl_s = ARGV[3]
local worker = ARGV[4]
local at = ARGV[5] -- started_ms as ISO 8601
local max_attempts = ARGV[6]
local expires_ms = ARGV[7] -- '' for never
local resumable = ARGV[8] -- 1 or 0
local pool = ARGV[9]
local priority = ARGV[10]
local message_reply_to = ARGV[11]
local submitted_ms = ARGV[12]
local fence = ARGV[13] -- unique to this call: sent twice, it starts once
local alone = ARGV[14] -- 1: the caller runs no other suspect
local suspect_after = ARGV[15]
local max_deaths = ARGV[16]
local model_identity = ARGV[17] -- of the caller; '' if it only ends the job
local session = ARGV[18] -- '' for none
local tenant = ARGV[19]
local traceparent = ARGV[20] -- '' for none, or one that is not sampled
local submitted_to = ARGV[21] -- '' if that is the pool
local not_before_ms = ARGV[22] -- when the job may start, as its message says; '' for now; 0 to end it, whatever the record says

-- part: rest_of_lease
-- Redis' clock, because the clocks of two workers differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local r = redis.call('HMGET', job_key, 'state', 'attempt', 'charged', 'tokens', 'worker', 'lease', 'cancel', 'fence', 'verdict', 'reply_to',
  'deaths', 'tokens_at_start', 'model_identity', 'past', 'entered', 'tenant', 'not_before', 'lease_ms', 'pause_ms')
local state, attempt, charged, tokens = r[1], tonumber(r[2] or 0), tonumber(r[3] or 0), tonumber(r[4] or 0)
local reply_to = r[10] or message_reply_to
local deaths = tonumber(r[11] or 0)
-- While the job waits, it is the pause before its next attempt.
local rest = rest_of_lease(job_key, 'lease', tonumber(r[6] or 0), tonumber(state == 'running' and r[18] or r[19] or math.huge), now)
local identity = r[13] or ''
local begun = r[8] == fence or r[8] == fence .. '+restarted'
-- A copy of this call that was held up on its way: it was refused, or the attempt it began is over.
local past = r[14] or ' '
local late = r[14] and string.find(past, ' ' .. fence .. ' ', 1, true)
local function remember(call)
  -- Only the last of them: a copy is not held up for longer.
  redis.call('HSET', job_key, 'past', string.sub(past .. call .. ' ', -2000))
end
local function refused(verdict, rest_ms)
  if not late then
    remember(fence)
  end
  return {verdict, rest_ms, 0, '', charged, reply_to, ''}
end
local early_ms = not_before_ms == '0' and 0 or (tonumber(r[17] or not_before_ms) or 0) - now
local function early()
  if not late then
    remember(fence)
  end
  return {'early', early_ms, 0, '', charged, reply_to, '', redis.call('EXISTS', request_key), ''}
end
local restart = ''
if tokens > 0 then
  if resumable == '0' then
    restart = 'not_resumable'
  elseif model_identity ~= '' and identity ~= model_identity then
    restart = 'another_model'
  end
end
if not state then
  -- Published by another AMQP client, or Redis lost its data: the message is the record.
  redis.call('HSET', job_key, 'pool', pool, 'priority', priority, 'reply_to', message_reply_to, 'submitted_at', submitted_ms)
  if session ~= '' then
    redis.call('HSET', job_key, 'session', session)
  end
  if traceparent ~= '' then
    redis.call('HSET', job_key, 'traceparent', traceparent)
  end
  if submitted_to ~= '' then
    redis.call('HSET', job_key, 'submitted_to', submitted_to)
  end
  if not_before_ms ~= '' and not_before_ms ~= '0' then
    redis.call('HSET', job_key, 'not_before', not_before_ms)
  end
  if early_ms > 0 then
    redis.call('HSET', job_key, 'state', 'queued', 'attempt', 0, 'charged', 0, 'tokens', 0, 'tenant', tenant, 'entered', not_before_ms)
    redis.call('EXPIRE', job_key, ttl_s + math.ceil(early_ms / 1000))
    return early()
  end
elseif state == 'running' then
  if begun then
    return {r[9], attempt, tokens, r[9] == 'started' and restart or '', charged, reply_to, identity,
      redis.call('EXISTS', request_key), attempt == 1 and r[15] or ''}
  end
  if rest > 0 and (late or r[5] ~= worker) then
    return refused('busy', rest)
  end
  -- Its worker is gone without a word. What it added counts for it only if it is kept.
  deaths = deaths + 1
  if tokens > tonumber(r[12] or 0) and resumable == '1' and restart == '' then
    charged = charged - 1
  end
elseif state ~= 'queued' then
  return {'done', attempt, 0, '', charged, reply_to, ''}
elseif begun then
  return {'busy', 0, 0, '', charged, reply_to, ''}
elseif rest > 0 and not r[7] then
  return refused('busy', rest)
elseif attempt == 0 and early_ms > 0 then
  return early()
end

local verdict = 'started'
if r[7] then
  verdict = r[7] == 'interrupt' and 'interrupted' or 'cancelled'
elseif (attempt == 0 or r[9] == 'expired') and expires_ms ~= '' and tonumber(expires_ms) < now then
  verdict = 'expired'
elseif charged >= tonumber(max_attempts) or deaths >= tonumber(max_deaths) then
  verdict = 'exhausted'
elseif charged >= tonumber(suspect_after) and alone == '0' then
  return refused('suspect', attempt)
end
if late then
  return refused('busy', math.max(0, rest))
end

attempt = attempt + 1
if verdict == 'started' then
  charged = charged + 1
  if restart == '' then
    if model_identity ~= '' then
      identity = model_identity
    end
    redis.call('XADD', journal_key, '*', 'entry', '{"kind":"running","at":"' .. at .. '","attempt":' .. attempt
      .. ',"worker_id":"' .. worker .. '","resumed_from":' .. tokens
      .. (identity ~= '' and ',"model_identity":"' .. identity .. '"' or '') .. '}')
  end
else
  restart = ''
end
redis.call('HSET', job_key, 'state', 'running', 'attempt', attempt, 'charged', charged, 'tokens', tokens,
  'worker', worker, 'lease', now + tonumber(lease_ms), 'lease_ms', lease_ms, 'started_at', started_ms,
  'fence', fence, 'verdict', verdict, 'deaths', deaths, 'tokens_at_start', tokens, 'model_identity', identity,
  'tenant', r[16] or tenant) -- clients of version 0.2 write none
if r[8] then
  remember((string.gsub(r[8], '%+restarted$', '')))
end
-- The two expire together, unless one of them was lost and is a new one by now.
if not state or redis.call('TTL', journal_key) < ttl_s / 2 then
  redis.call('EXPIRE', job_key, ttl_s)
  redis.call('EXPIRE', journal_key, ttl_s)
  redis.call('EXPIRE', request_key, ttl_s)
end
return {verdict, attempt, tokens, restart, charged, reply_to, identity, redis.call('EXISTS', request_key),
  state and attempt == 1 and r[15] or ''}
