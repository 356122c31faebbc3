-- Somebody waits for a job, until `for_s` seconds from now. ARGV: terms as JSON. Returns the job's status, "" for none.
local terms = cjson.decode(ARGV[1])
local status = redis.call('HGET', job_key(terms.id), 'status')
if not status or is_over(status) then return status or '' end
local waiting = 'polyreel:waiting:' .. terms.id
redis.call('ZADD', waiting, seconds(now() + terms.for_s), terms.waiter)
if redis.call('TTL', waiting) < terms.for_s then redis.call('EXPIRE', waiting, math.ceil(terms.for_s)) end
return status
