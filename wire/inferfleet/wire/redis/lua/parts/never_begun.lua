-- Whether the record knows of no attempt. If a worker has one nevertheless, Redis has failed over to a replica that
-- lagged, and nobody else has begun the job.
local function never_begun(state, attempt)
  return state == 'queued' and attempt == '0'
end
