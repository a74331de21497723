-- Cancel: a queued job ends here and now; a running one is marked, and its worker ends it.
-- KEYS record, journal, result
-- ARGV now_ms, ttl_s, finished_entry, result, mode ('cancel'; or 'interrupt': keep what was generated), state to end in,
--      tokens ('' for any; the result has the text of so many)
-- Returns {what ('missing', 'requested', 'changed', or a terminal state), attempt, reply_to}. With 'changed' nothing was
-- done: other tokens were generated meanwhile.
local record = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'reply_to', 'tokens')
local state = record[1]
if not state then
  return {'missing', 0, ''}
end
if state == 'running' or (state == 'queued' and ARGV[5] == 'interrupt' and tonumber(record[4]) > 0) then
  -- The first request counts, as it does in the worker that hears of both.
  redis.call('HSETNX', KEYS[1], 'cancel', ARGV[5])
  return {'requested', tonumber(record[2]), record[3]}
end
if state == 'queued' and ARGV[7] ~= '' and ARGV[7] ~= record[4] then
  return {'changed', tonumber(record[2]), record[3]}
end
if state == 'queued' then
  redis.call('HSET', KEYS[1], 'state', ARGV[6], 'cancel', ARGV[5], 'finished_at', ARGV[1])
  redis.call('SET', KEYS[3], ARGV[4], 'EX', ARGV[2])
  redis.call('XADD', KEYS[2], '*', 'entry', ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('EXPIRE', KEYS[2], ARGV[2])
  state = ARGV[6]
end
return {state, tonumber(record[2]), record[3]}
