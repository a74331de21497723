-- Let an endpoint stand in the queue at the time of its next delivery.
-- Sent twice, the second changes nothing, or does what is right by then.
local endpoint_key, due_key, queue_key = KEYS[1], KEYS[2], KEYS[3]
local endpoint = ARGV[1]

-- part: requeue_endpoint
requeue_endpoint(queue_key, endpoint_key, due_key, endpoint)
return 1
