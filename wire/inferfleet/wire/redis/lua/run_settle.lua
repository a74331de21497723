-- Let a run go: it waits, is to go on elsewhere, or has ended. It does not wait if it was told more than its
-- runner has read.
-- Returns its state: 'running' if the runner has to read on; '' if another runner has it. Sent twice, the
-- second changes nothing.
local run_key, steps_key, inbox_key = KEYS[1], KEYS[2], KEYS[3]
local fence = ARGV[1]
local new_state = ARGV[2]
local told = ARGV[3] -- how much of what it was told the runner has read
local wake_ms = ARGV[4] -- when a waiting run goes on at the latest
local waits_for = ARGV[5] -- '' unless it waits
local result = ARGV[6] -- '' unless it has ended
local announced = ARGV[7] -- the newest question of which webhook endpoints were told
local ttl_s = ARGV[8]

local r = redis.call('HMGET', run_key, 'fence', 'state', 'told')
if r[1] ~= fence then
  return ''
elseif r[2] ~= 'running' then
  return r[2]
elseif new_state == 'waiting' and tonumber(r[3] or 0) > tonumber(told) then
  return 'running'
end
redis.call('HSET', run_key, 'state', new_state, 'claims', 0, 'wake_ms', wake_ms,
  'waits_for', waits_for, 'lease_until', 0, 'announced', announced)
if result ~= '' then
  redis.call('HSET', run_key, 'result', result)
end
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ttl_s)
end
return new_state
