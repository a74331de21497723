-- Remove a document whose chunks were removed, unless another version of it has begun.
-- Returns 1; 0 if another version has begun, or the document is gone. Sent twice, the second changes nothing.
local documents_key, document_key = KEYS[1], KEYS[2]
local version = ARGV[1]
local digest = ARGV[2]

if redis.call('HGET', document_key, 'version') ~= version then
  return 0
end
redis.call('DEL', document_key)
redis.call('ZREM', documents_key, digest)
return 1
