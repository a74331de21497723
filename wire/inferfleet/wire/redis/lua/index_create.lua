-- Create an index, unless it exists. Returns the options of the one that is there now.
local index_key = KEYS[1]
local generation = ARGV[1]
local created_ms = ARGV[2]
local options = ARGV[3]

local present = redis.call('HGET', index_key, 'options')
if present then
  return present
end
redis.call('HSET', index_key, 'generation', generation, 'created_ms', created_ms, 'options', options)
return options
