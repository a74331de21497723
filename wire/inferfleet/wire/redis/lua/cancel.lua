-- Cancel: a queued job ends here and now; a running one is marked, and its worker ends it. One that for longer than
-- its lease no worker has held ends as a queued one does: its message may be gone, and the fence refuses its worker.
-- Returns {what ('missing', 'requested', 'changed', or a terminal state), attempt, reply_to, pool, priority}. With
-- 'changed' nothing was done: the job got on meanwhile. Sent twice, the second answers as the first, or as it is by then.
local job_key, journal_key, result_key, request_key, response_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local ended_ms = ARGV[1]
local result_ttl_s = ARGV[2]
local finished_entry = ARGV[3]
local result = ARGV[4]
local mode = ARGV[5] -- 'cancel'; 'interrupt': keep what was generated; 'fail': only if it waits for other jobs, one of which has failed
local end_state = ARGV[6]
local of_attempt = ARGV[7] -- the result is made of this attempt and these tokens
local of_tokens = ARGV[8] -- '' for any
local tombstone_ttl_s = ARGV[9] -- of a record whose message is in the queue
local said = ARGV[10] -- 1: what the last attempt said is in its session, so its worker, or the next one, has to end it

-- part: end_job
local r = redis.call('HMGET', job_key, 'state', 'attempt', 'reply_to', 'tokens', 'lease', 'lease_ms', 'pool', 'priority', 'not_before', 'ready')
local state = r[1]
if not state then
  return {'missing', 0, '', '', ''}
end
local attempt, reply_to, pool, priority = tonumber(r[2]), r[3], r[7], r[8]
local waits = state == 'queued'
-- Redis' clock, because the clocks of two machines differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if state == 'running' then
  waits = tonumber(r[5] or 0) + tonumber(r[6] or 0) < now
end
if mode == 'fail' and (state == 'running' or state == 'queued' and (attempt > 0 or r[10])) then
  return {'changed', attempt, reply_to, pool, priority}
end
local kept = said == '1' or mode == 'interrupt' and tonumber(r[4]) > 0
if state == 'running' and not waits or waits and kept then
  -- The first request counts, as it does in the worker that hears of both.
  redis.call('HSETNX', job_key, 'cancel', mode)
  return {'requested', attempt, reply_to, pool, priority}
end
if not waits then
  return {state, attempt, reply_to, pool, priority}
end
if of_tokens ~= '' and (of_attempt ~= r[2] or of_tokens ~= r[4]) then
  return {'changed', attempt, reply_to, pool, priority}
end
if mode ~= 'fail' then
  redis.call('HSET', job_key, 'cancel', mode)
end
redis.call('HDEL', job_key, 'fence')
-- Its message may still be on its way.
local keep_s = tombstone_ttl_s + math.max(0, math.ceil(((tonumber(r[9]) or 0) - now) / 1000))
end_job(job_key, journal_key, result_key, request_key, response_key, end_state, r[4] or 0, ended_ms, result, finished_entry,
  result_ttl_s, keep_s)
return {end_state, attempt, reply_to, pool, priority}
