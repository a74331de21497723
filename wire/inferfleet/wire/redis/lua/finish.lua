-- Commit: write the one terminal result, if the job is still ours and has none.
-- Returns 'ok', 'followed' (the same, and other jobs run after this one), 'fenced' or 'missing'. Sent twice, the second
-- answers as the first and changes nothing.
local job_key, journal_key, result_key, request_key, response_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local fence = ARGV[1]
local ended_ms = ARGV[2]
local result_ttl_s = ARGV[3]
local end_state = ARGV[4]
local offset = ARGV[5]
local count = ARGV[6]
local tokens_entry = ARGV[7]
local finished_entry = ARGV[8]
local result = ARGV[9]
local tombstone_ttl_s = ARGV[10] -- of a record of whose messages one may be in the queue

-- part: end_job
-- part: never_begun
local r = redis.call('HMGET', job_key, 'state', 'fence', 'tokens', 'calls', 'session', 'copied', 'attempt', 'followers',
  'verdict')
if not r[1] or never_begun(r[1], r[7]) then
  return 'missing'
end
if r[2] ~= fence then
  return 'fenced'
end
if r[1] ~= 'running' then
  return r[1] == end_state and (r[8] and 'followed' or 'ok') or 'fenced'
end
-- One that another AMQP client published, and that expired before it began, has no journal yet.
if tonumber(offset) > tonumber(r[3]) or (r[9] ~= 'expired' and redis.call('EXISTS', journal_key) == 0) then
  return 'missing'
end
local tokens, last = tonumber(r[3]), tonumber(offset) + tonumber(count)
if last > tokens then
  redis.call('XADD', journal_key, '*', 'entry', tokens_entry)
  tokens = last
end
-- A second message must find that the job has ended. There may be one if several have submitted the job, or if it is a
-- turn, which others publish as well.
local copied = r[6] or (r[5] and r[5] ~= '') or string.find(r[4] or '', '%S %S')
end_job(job_key, journal_key, result_key, request_key, response_key, end_state, tokens, ended_ms, result, finished_entry,
  result_ttl_s, copied and tombstone_ttl_s or result_ttl_s)
return r[8] and 'followed' or 'ok'
