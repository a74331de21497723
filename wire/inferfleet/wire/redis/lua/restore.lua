-- Redis lost its data, or the latest of them, while the job ran: write back what its worker knows, unless
-- somebody was faster.
-- Sent twice, the second changes nothing: all that it would write is there, or more.
-- KEYS record, journal
-- ARGV fence, attempt, lease_ms, ttl_s, worker, charged, tokens, running_entry, tokens_entry ('' for none),
--      pool, priority, reply_to, submitted_ms, started_ms, model identity, session ('' for none)
-- Returns 1 if the record is now ours, else 0.
local r = redis.call('HMGET', KEYS[1], 'state', 'fence', 'tokens')
if r[1] then
  if r[1] ~= 'running' or r[2] ~= ARGV[1] then
    return 0
  end
  if tonumber(r[3]) >= tonumber(ARGV[7]) and redis.call('EXISTS', KEYS[2]) == 1 then
    return 1
  end
end
-- Redis' clock, because the clocks of two workers differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[1], 'state', 'running', 'fence', ARGV[1], 'verdict', 'started', 'attempt', ARGV[2], 'charged', ARGV[6], 'tokens', ARGV[7],
  'worker', ARGV[5], 'lease', now + tonumber(ARGV[3]), 'lease_ms', ARGV[3], 'pool', ARGV[10], 'priority', ARGV[11], 'reply_to', ARGV[12],
  'submitted_at', ARGV[13], 'started_at', ARGV[14],
  'model_identity', ARGV[15])
if ARGV[16] ~= '' then
  redis.call('HSET', KEYS[1], 'session', ARGV[16])
end
redis.call('DEL', KEYS[2])
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[8])
if ARGV[9] ~= '' then
  redis.call('XADD', KEYS[2], '*', 'entry', ARGV[9])
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
