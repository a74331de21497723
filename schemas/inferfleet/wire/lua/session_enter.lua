-- A turn asks to run in its session.
-- KEYS session, lane, payloads
-- ARGV job, payload, on_busy, now_ms, ttl_s (of a busy session), stale_ms, max_bytes
-- Returns {verdict, owner, payload}.
-- Verdicts: 'run' (the session is ours: publish), 'wait' (in the lane), 'busy' (refused), 'too_large'.
-- The payload, if any, is the owner's: its publisher died before it could publish; publish it again.
local s = redis.call('HMGET', KEYS[1], 'owner', 'published', 'owner_since', 'bytes')
local owner = s[1] or ''
if owner == ARGV[1] then
  return {'run', owner, ''}
end
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then
  return {'wait', owner, ''}
end
if tonumber(s[4] or 0) + #ARGV[2] > tonumber(ARGV[7]) then
  return {'too_large', owner, ''}
end
if owner ~= '' and ARGV[3] == 'reject' then
  return {'busy', owner, ''}
end
redis.call('HSETNX', KEYS[1], 'created_at', ARGV[4])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
local verdict, again = 'wait', ''
if owner == '' then
  verdict = 'run'
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'published', 0, 'owner_since', ARGV[4], 'fence', '')
else
  redis.call('RPUSH', KEYS[2], ARGV[1])
  if s[2] == '0' and tonumber(s[3]) + tonumber(ARGV[6]) < tonumber(ARGV[4]) then
    again = redis.call('HGET', KEYS[3], owner) or ''
  end
end
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ARGV[5])
end
return {verdict, owner, again}
