-- Begin to store a version of a document. What is stored for an earlier version is refused from now on.
-- Returns the ids of the chunks that are stored, of this version or another; false if the index is gone.
local index_key, vectors_key, documents_key, document_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local generation = ARGV[1] -- of the index: another one was deleted and created again
local digest = ARGV[2]
local id = ARGV[3]
local version = ARGV[4]
local metadata = ARGV[5]
local attributes = ARGV[6]

if redis.call('HGET', index_key, 'generation') ~= generation then
  return false
end
local chunks = {}
for _, field in ipairs(redis.call('HKEYS', document_key)) do
  if #field == 32 then
    table.insert(chunks, field)
  end
end
if redis.call('HGET', document_key, 'metadata') ~= metadata then
  for _, chunk in ipairs(chunks) do
    redis.call('VSETATTR', vectors_key, digest .. chunk, attributes)
  end
end
-- Only those with the score 1 are in the index: the others have no chunk yet.
redis.call('ZADD', documents_key, #chunks > 0 and 1 or 0, digest)
redis.call('HSET', document_key, 'id', id, 'version', version, 'metadata', metadata)
return chunks
