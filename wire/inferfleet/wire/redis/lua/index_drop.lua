-- Remove a chunk that this version of a document does not have.
-- Returns 1; 0 if another version has begun. Sent twice, the second changes nothing.
local vectors_key, document_key = KEYS[1], KEYS[2]
local version = ARGV[1]
local digest = ARGV[2]
local chunk = ARGV[3]

if redis.call('HGET', document_key, 'version') ~= version then
  return 0
end
redis.call('VREM', vectors_key, digest .. chunk)
redis.call('HDEL', document_key, chunk)
return 1
