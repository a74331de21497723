-- Claim entries that are due, each unless somebody else was faster.
-- Returns 1 or 0 for each. Sent twice, the second answers as the first: 'until_ms' is the call's own.
local due_key = KEYS[1]
local until_ms = ARGV[1] -- when they are due again, should nobody settle them
-- The rest of ARGV: an entry and its score, as the caller read it, for each.

local claimed = {}
for i = 2, #ARGV, 2 do
  local score = tonumber(redis.call('ZSCORE', due_key, ARGV[i]) or nil)
  local ours = score and (score == tonumber(ARGV[i + 1]) or score == tonumber(until_ms))
  if ours then
    redis.call('ZADD', due_key, until_ms, ARGV[i])
  end
  table.insert(claimed, ours and 1 or 0)
end
return claimed
