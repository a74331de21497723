-- Delete an index, unless another one was created meanwhile. From now on nothing can be stored in it.
-- Returns 1; 0 if it was gone. Lists the generation, so that what it has stored is removed even if the caller dies.
local index_key, deleted_key = KEYS[1], KEYS[2]
local generation = ARGV[1]

if redis.call('HGET', index_key, 'generation') ~= generation then
  return 0
end
redis.call('ZADD', deleted_key, 0, generation)
redis.call('DEL', index_key)
return 1
