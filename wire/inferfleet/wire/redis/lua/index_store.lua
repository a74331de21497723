-- Store a chunk of a document, and its vector. The first chunk of an index decides which model embeds it.
-- Returns 'stored'; 'superseded' if another version of the document has begun, or the index is gone; else the
-- model, identity and dimensions of the index, if these differ. Sent twice, the second changes nothing.
local index_key, vectors_key, documents_key, document_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local generation = ARGV[1]
local version = ARGV[2]
local digest = ARGV[3]
local chunk = ARGV[4]
local text = ARGV[5]
local vector = ARGV[6]
local attributes = ARGV[7]
local model = ARGV[8]
local identity = ARGV[9]
local dimensions = ARGV[10]

local r = redis.call('HMGET', index_key, 'generation', 'model', 'identity', 'dimensions')
if r[1] ~= generation or redis.call('HGET', document_key, 'version') ~= version then
  return {'superseded'}
elseif not r[2] then
  redis.call('HSET', index_key, 'model', model, 'identity', identity, 'dimensions', dimensions)
elseif r[2] ~= model or r[3] ~= identity or r[4] ~= dimensions then
  return {'other', r[2], r[3], r[4]}
end
redis.call('VADD', vectors_key, 'FP32', vector, digest .. chunk, 'SETATTR', attributes)
redis.call('HSET', document_key, chunk, text)
redis.call('ZADD', documents_key, 1, digest)
return {'stored'}
