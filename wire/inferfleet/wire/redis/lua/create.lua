-- A job is accepted: make its record, or join those who submit it too.
-- Returns {state, attempt, closed (1: whoever made it takes it back), stalled (1: an attempt has
-- begun it, for longer than its lease nobody has held it, and it has not been published again since), pool,
-- made (1: the record is new), not_before, follows (1: it runs after other jobs), priority}.
-- The pool is the record's: a rollout may have another weight by now than when the record was made. So are not_before and
-- the priority, as others may have submitted the job with another one.
local job_key, journal_key, request_key = KEYS[1], KEYS[2], KEYS[3]
local submitted_ms = ARGV[1] -- as the job says, which need not be now
local ttl_s = ARGV[2]
local queued_entry = ARGV[3]
local pool = ARGV[4]
local priority = ARGV[5]
local reply_to = ARGV[6]
local call = ARGV[7] -- unique to this submission
local keep = ARGV[8] -- 1: do not let it be taken back, should somebody be about to
local session = ARGV[9] -- '' for none
local tenant = ARGV[10]
local request = ARGV[11] -- '' if it is not kept
local traceparent = ARGV[12] -- '' for none, or one that is not sampled
local submitted_to = ARGV[13] -- '' if that is the pool
local size = ARGV[14] -- for estimates of the work that waits
local not_before_ms = ARGV[15] -- when it may start; '' for now
local after = ARGV[16] -- the jobs after which it runs, with spaces between; '' for none

-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local r = redis.call('HMGET', job_key, 'state', 'attempt', 'calls', 'closed', 'lease', 'lease_ms', 'copied', 'pool', 'not_before', 'after', 'priority')
if not r[1] then
  redis.call('HSET', job_key, 'state', 'queued', 'attempt', 0, 'charged', 0, 'tokens', 0,
    'pool', pool, 'priority', priority, 'tenant', tenant, 'reply_to', reply_to, 'submitted_at', submitted_ms, 'entered', math.max(now, tonumber(not_before_ms) or 0), 'size', size, 'calls', call .. ' ')
  if session ~= '' then
    redis.call('HSET', job_key, 'session', session)
  end
  if traceparent ~= '' then
    redis.call('HSET', job_key, 'traceparent', traceparent)
  end
  if submitted_to ~= '' then
    redis.call('HSET', job_key, 'submitted_to', submitted_to)
  end
  if not_before_ms ~= '' then
    redis.call('HSET', job_key, 'not_before', not_before_ms)
  end
  if after ~= '' then
    redis.call('HSET', job_key, 'after', after)
  end
  redis.call('XADD', journal_key, '*', 'entry', queued_entry)
  redis.call('EXPIRE', job_key, ttl_s)
  redis.call('EXPIRE', journal_key, ttl_s)
  if request ~= '' then
    redis.call('SET', request_key, request, 'EX', ttl_s)
  end
  return {'queued', 0, 0, 0, pool, 1, not_before_ms, after ~= '' and 1 or 0, priority}
end
local attempt, stalled = tonumber(r[2]), 0
local follows = r[10] and 1 or 0
if r[1] == 'running' or (r[1] == 'queued' and attempt > 0) then
  stalled = r[7] ~= r[2] and tonumber(r[5] or 0) + tonumber(r[6] or 0) < now and 1 or 0
end
if stalled == 0 and (r[1] ~= 'queued' or attempt > 0) then
  return {r[1], attempt, 0, 0, r[8] or pool, 0, r[9] or '', follows, r[11] or priority}
end
if r[4] and stalled == 0 and keep == '0' then
  return {'queued', 0, 1, 0, r[8] or pool, 0, r[9] or '', follows, r[11] or priority}
end
redis.call('HDEL', job_key, 'closed')
local calls = r[3] or ''
if not string.find(calls, call .. ' ', 1, true) then
  redis.call('HSET', job_key, 'calls', calls .. call .. ' ')
end
-- Sent twice, it finds itself.
local made = attempt == 0 and calls == call .. ' ' and 1 or 0
return {r[1], attempt, 0, stalled, r[8] or pool, made, r[9] or '', follows, r[11] or priority}
