-- Redis lost its data, or the latest of them, while the job ran: write back what its worker knows, unless
-- somebody was faster.
-- Sent twice, the second changes nothing: all that it would write is there, or more.
-- Returns 1 if the record is now ours, else 0.
local job_key, journal_key, request_key = KEYS[1], KEYS[2], KEYS[3]
local fence = ARGV[1]
local attempt = ARGV[2]
local lease_ms = ARGV[3]
local ttl_s = ARGV[4]
local worker = ARGV[5]
local charged = ARGV[6]
local tokens = ARGV[7]
local running_entry = ARGV[8]
local tokens_entry = ARGV[9] -- '' for none
local pool = ARGV[10]
local priority = ARGV[11]
local reply_to = ARGV[12]
local submitted_ms = ARGV[13]
local started_ms = ARGV[14]
local model_identity = ARGV[15]
local session = ARGV[16] -- '' for none
local tenant = ARGV[17]
local request = ARGV[18] -- '' if it is not kept
local traceparent = ARGV[19] -- '' for none, or one that is not sampled
local submitted_to = ARGV[20] -- '' if that is the pool

-- part: never_begun
local r = redis.call('HMGET', job_key, 'state', 'fence', 'tokens', 'attempt')
if r[1] and not never_begun(r[1], r[4]) then
  if r[1] ~= 'running' or r[2] ~= fence then
    return 0
  end
  if tonumber(r[3]) >= tonumber(tokens) and redis.call('EXISTS', journal_key) == 1 then
    return 1
  end
end
-- Redis' clock, because the clocks of two workers differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', job_key, 'state', 'running', 'fence', fence, 'verdict', 'started', 'attempt', attempt, 'charged', charged, 'tokens', tokens,
  'worker', worker, 'lease', now + tonumber(lease_ms), 'lease_ms', lease_ms, 'pool', pool, 'priority', priority, 'reply_to', reply_to,
  'submitted_at', submitted_ms, 'started_at', started_ms,
  'model_identity', model_identity, 'tenant', tenant)
if session ~= '' then
  redis.call('HSET', job_key, 'session', session)
end
if traceparent ~= '' then
  redis.call('HSET', job_key, 'traceparent', traceparent)
end
if submitted_to ~= '' then
  redis.call('HSET', job_key, 'submitted_to', submitted_to)
end
redis.call('DEL', journal_key)
redis.call('XADD', journal_key, '*', 'entry', running_entry)
if tokens_entry ~= '' then
  redis.call('XADD', journal_key, '*', 'entry', tokens_entry)
end
redis.call('EXPIRE', job_key, ttl_s)
redis.call('EXPIRE', journal_key, ttl_s)
if request ~= '' then
  redis.call('SET', request_key, request, 'EX', ttl_s)
end
return 1
