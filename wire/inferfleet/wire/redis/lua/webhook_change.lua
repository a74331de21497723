-- Change an endpoint: some of its fields, its secret, or whether it is enabled.
-- Returns 1, or 0 if the tenant has no such endpoint. Sent twice, the second changes nothing, also after others.
local endpoint_key, due_key, queue_key = KEYS[1], KEYS[2], KEYS[3]
local endpoint = ARGV[1]
local tenant = ARGV[2]
local updated_ms = ARGV[3] -- when this is, if anything differs
local secret = ARGV[4] -- '' to keep it
local old_secret_until_ms = ARGV[5] -- how long the secret so far signs, too; '' for no longer
local enabled = ARGV[6] -- 1 or 0; '' to keep it
local change = ARGV[7] -- an id of this change, of 16 characters
-- The rest of ARGV: the fields to set, each with its value.

-- part: requeue_endpoint
local e = redis.call('HMGET', endpoint_key, 'tenant', 'secret', 'changes', 'disabled_ms')
if e[1] ~= tenant then
  return 0
end
local changes = e[3] or ''
if string.find(changes, change, 1, true) then
  return 1
end
-- The last 16 changes.
redis.call('HSET', endpoint_key, 'changes', string.sub(changes .. change, -256))
local is_new = secret ~= '' and secret ~= e[2] or enabled == '1' and e[4] or enabled == '0' and not e[4]
for i = 8, #ARGV, 2 do
  is_new = is_new or redis.call('HGET', endpoint_key, ARGV[i]) ~= ARGV[i + 1]
  redis.call('HSET', endpoint_key, ARGV[i], ARGV[i + 1])
end
if is_new then
  redis.call('HSET', endpoint_key, 'updated_ms', updated_ms)
end
if secret ~= '' and secret ~= e[2] then
  redis.call('HDEL', endpoint_key, 'old_secret', 'old_secret_until_ms')
  if old_secret_until_ms ~= '' then
    redis.call('HSET', endpoint_key, 'old_secret', e[2], 'old_secret_until_ms', old_secret_until_ms)
  end
  redis.call('HSET', endpoint_key, 'secret', secret)
end
if enabled == '1' then
  redis.call('HDEL', endpoint_key, 'disabled_ms', 'failing_ms', 'failure')
elseif enabled == '0' then
  redis.call('HSETNX', endpoint_key, 'disabled_ms', updated_ms)
end
requeue_endpoint(queue_key, endpoint_key, due_key, endpoint)
return 1
