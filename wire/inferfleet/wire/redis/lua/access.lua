-- Try commands on a key that nobody uses, to learn which of them Redis refuses.
-- Returns {command, what Redis said, ...} for those that it refused. Leaves nothing behind. On the list of
-- workers, which is one key for all, it changes nothing.
local any_key = KEYS[1]
-- The rest of ARGV: names of commands.

local creating = {
  HSET = {'f', 'v'}, HSETNX = {'f', 'v'}, HINCRBY = {'f', 1}, SET = {'v'}, RPUSH = {'v'}, XADD = {'*', 'f', 'v'},
}
local harmless = {
  HGET = {'f'}, HMGET = {'f'}, HGETALL = {}, HEXISTS = {'f'}, HKEYS = {}, HDEL = {'f'}, GET = {}, LPOP = {}, LLEN = {}, LREM = {0, 'v'},
  LRANGE = {0, 0}, XRANGE = {'-', '+', 'COUNT', 1}, XREVRANGE = {'+', '-', 'COUNT', 1},
  ZADD = {'XX', 1, ':'}, ZRANGE = {0, 0}, ZRANGEBYSCORE = {0, 0}, ZREM = {':'}, ZREMRANGEBYSCORE = {'(0', '(0'}, ZCARD = {}, ZCOUNT = {0, 0}, ZSCORE = {':'},
  DEL = {}, EXISTS = {}, EXPIRE = {60}, PEXPIRE = {60000}, TTL = {},
}
local refused = {}
local function try(name, ...)
  local answer = redis.pcall(name, ...)
  if type(answer) == 'table' and answer.err then
    table.insert(refused, name)
    table.insert(refused, answer.err)
  end
end
for _, name in ipairs(ARGV) do
  if name == 'TIME' then
    try(name)
  elseif name == 'SCAN' then
    try(name, 0, 'COUNT', 1)
  elseif creating[name] then
    try(name, any_key, unpack(creating[name]))
    redis.pcall('DEL', any_key)
  else
    try(name, any_key, unpack(harmless[name]))
  end
end
return refused
