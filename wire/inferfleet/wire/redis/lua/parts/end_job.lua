-- Every way in which a job ends comes by here: its state, its result and the last line of its journal, at once. Its
-- request is needed no more.
-- The record stays for record_ttl_s: longer than the result where a message of the job may still come.
local function end_job(job_key, journal_key, result_key, request_key, response_key, state, tokens, ended_ms, result,
  finished_entry, result_ttl_s, record_ttl_s)
  redis.call('XADD', journal_key, '*', 'entry', finished_entry)
  redis.call('SET', result_key, result, 'EX', result_ttl_s)
  redis.call('HSET', job_key, 'state', state, 'tokens', tokens, 'finished_at', ended_ms)
  redis.call('DEL', request_key)
  redis.call('EXPIRE', job_key, record_ttl_s)
  redis.call('EXPIRE', journal_key, result_ttl_s)
  -- Only a response of OpenAI's API has one.
  redis.call('EXPIRE', response_key, result_ttl_s)
end
