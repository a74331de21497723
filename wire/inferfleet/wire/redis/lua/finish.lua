-- Commit: write the one terminal result, if the job is still ours and has none.
-- KEYS record, journal, result
-- ARGV fence, now_ms, ttl_s, state, offset, count, tokens_entry, finished_entry, result,
--      ttl_s of a record of whose messages one may be in the queue
-- Returns 'ok', 'fenced' or 'missing'. Sent twice, the second answers 'ok' and changes nothing.
local r = redis.call('HMGET', KEYS[1], 'state', 'fence', 'tokens', 'calls', 'session', 'copied')
if not r[1] then
  return 'missing'
end
if r[2] ~= ARGV[1] then
  return 'fenced'
end
if r[1] ~= 'running' then
  return r[1] == ARGV[4] and 'ok' or 'fenced'
end
if tonumber(ARGV[5]) > tonumber(r[3]) or redis.call('EXISTS', KEYS[2]) == 0 then
  return 'missing'
end
local last = tonumber(ARGV[5]) + tonumber(ARGV[6])
if last > tonumber(r[3]) then
  redis.call('XADD', KEYS[2], '*', 'entry', ARGV[7])
else
  last = tonumber(r[3])
end
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[8])
redis.call('SET', KEYS[3], ARGV[9], 'EX', ARGV[3])
redis.call('HSET', KEYS[1], 'state', ARGV[4], 'tokens', last, 'finished_at', ARGV[2])
-- A second message must find that the job has ended. There may be one if several have submitted the job, or if it is a
-- turn, which others publish as well.
local copied = r[6] or (r[5] and r[5] ~= '') or string.find(r[4] or '', '%S %S')
redis.call('EXPIRE', KEYS[1], copied and ARGV[10] or ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 'ok'
