-- Append generated tokens, and then an entry that says that the running attempt has lost its slot or has one again.
-- Also renews the lease.
-- Returns 'ok', 'cancel' or 'interrupt' (written, and somebody asked for that), 'fenced' or 'missing'.
-- Sent twice, the second changes nothing: the entry's number is written already.
local job_key, journal_key = KEYS[1], KEYS[2]
local fence = ARGV[1]
local lease_ms = ARGV[2]
local offset = ARGV[3]
local count = ARGV[4]
local tokens_entry = ARGV[5]
local entry = ARGV[6]
local number = ARGV[7] -- of the entry, 1 for the first of this attempt

-- part: never_begun
local r = redis.call('HMGET', job_key, 'state', 'fence', 'tokens', 'cancel', 'attempt', 'noted')
if not r[1] or never_begun(r[1], r[5]) then
  return 'missing'
end
if r[1] ~= 'running' or r[2] ~= fence then
  return 'fenced'
end
if tonumber(offset) > tonumber(r[3]) or redis.call('EXISTS', journal_key) == 0 then
  return 'missing'
end
local noted_by, noted = string.match(r[6] or '', '^(.*) (%d+)$')
if noted_by == r[5] and tonumber(noted) >= tonumber(number) then
  return r[4] or 'ok'
end
-- Redis' clock, because the clocks of two workers differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = tonumber(offset) + tonumber(count)
if last > tonumber(r[3]) then
  redis.call('XADD', journal_key, '*', 'entry', tokens_entry)
else
  last = tonumber(r[3])
end
redis.call('XADD', journal_key, '*', 'entry', entry)
redis.call('HSET', job_key, 'tokens', last, 'lease', now + tonumber(lease_ms), 'noted', r[5] .. ' ' .. number)
return r[4] or 'ok'
