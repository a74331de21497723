-- Cancel: a queued job ends here and now; a running one is marked, and its worker ends it. One that for longer than
-- its lease no worker has held ends as a queued one does: its message may be gone, and the fence refuses its worker.
-- KEYS record, journal, result
-- ARGV now_ms, ttl_s, finished_entry, result, mode ('cancel'; or 'interrupt': keep what was generated), state to end in,
--      attempt and tokens that the result is made of ('' for any), ttl_s of a record whose message is in the queue,
--      said (1: what the last attempt said is in its session, so its worker, or the next one, has to end it)
-- Returns {what ('missing', 'requested', 'changed', or a terminal state), attempt, reply_to}. With 'changed' nothing was
-- done: the job got on meanwhile. Sent twice, the second answers as the first, or as it is by then.
local record = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'reply_to', 'tokens', 'lease', 'lease_ms')
local state = record[1]
if not state then
  return {'missing', 0, ''}
end
local attempt, reply_to = tonumber(record[2]), record[3]
local waits = state == 'queued'
if state == 'running' then
  -- Redis' clock, because the clocks of two machines differ.
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  waits = tonumber(record[5] or 0) + tonumber(record[6] or 0) < now
end
local kept = ARGV[10] == '1' or ARGV[5] == 'interrupt' and tonumber(record[4]) > 0
if state == 'running' and not waits or waits and kept then
  -- The first request counts, as it does in the worker that hears of both.
  redis.call('HSETNX', KEYS[1], 'cancel', ARGV[5])
  return {'requested', attempt, reply_to}
end
if not waits then
  return {state, attempt, reply_to}
end
if ARGV[8] ~= '' and (ARGV[7] ~= record[2] or ARGV[8] ~= record[4]) then
  return {'changed', attempt, reply_to}
end
redis.call('HSET', KEYS[1], 'state', ARGV[6], 'cancel', ARGV[5], 'finished_at', ARGV[1])
redis.call('HDEL', KEYS[1], 'fence')
redis.call('SET', KEYS[3], ARGV[4], 'EX', ARGV[2])
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[9])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return {ARGV[6], attempt, reply_to}
