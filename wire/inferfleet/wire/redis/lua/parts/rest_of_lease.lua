-- How long a lease still lasts. One that would last longer than it was taken for is of a clock that was set back since:
-- its holder renews it soon, if it is alive, and else it ends as if it was taken now.
local function rest_of_lease(key, field, until_ms, length_ms, now_ms)
  if until_ms - now_ms > length_ms then
    redis.call('HSET', key, field, now_ms + length_ms)
    return length_ms
  end
  return until_ms - now_ms
end
