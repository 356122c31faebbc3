-- Somebody waits for a job, until `for_s` seconds from now. ARGV: terms as JSON. Returns the job's status, "" for none,
-- "left" for one that was cancelled because all who waited for it before had gone.
local terms = cjson.decode(ARGV[1])
local status, by = unpack(redis.call('HMGET', job_key(terms.id), 'status', 'ended_by'))
if status == 'cancelled' and by == 'leave' then return 'left' end
if not status or is_over(status) then return status or '' end
local waiting = 'polyreel:waiting:' .. terms.id
redis.call('ZADD', waiting, seconds(now() + terms.for_s), terms.waiter)
if redis.call('TTL', waiting) < terms.for_s then redis.call('EXPIRE', waiting, math.ceil(terms.for_s)) end
return status
