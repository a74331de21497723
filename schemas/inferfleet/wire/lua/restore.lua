-- Redis lost its data while the job ran: write back what its worker knows, unless somebody was faster.
-- KEYS record, journal
-- ARGV attempt, lease_until_ms, ttl_s, worker, charged, tokens, running_entry, tokens_entry ('' for none),
--      pool, priority, reply_to, submitted_ms, started_ms
-- Returns 1 if the record is now ours, else 0.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
redis.call('HSET', KEYS[1], 'state', 'running', 'attempt', ARGV[1], 'charged', ARGV[5], 'tokens', ARGV[6],
  'worker', ARGV[4], 'lease', ARGV[2], 'pool', ARGV[9], 'priority', ARGV[10], 'reply_to', ARGV[11],
  'submitted_at', ARGV[12], 'started_at', ARGV[13])
redis.call('DEL', KEYS[2])
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[7])
if ARGV[8] ~= '' then
  redis.call('XADD', KEYS[2], '*', 'entry', ARGV[8])
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
