-- A client that waited for a job has gone: cancel the job unless somebody else waits for it, in one step. ARGV: terms as
-- JSON. Returns "awaited", or what cancel.lua says, whose lines these are.
local terms = cjson.decode(ARGV[1])
local waiting = 'polyreel:waiting:' .. terms.id
redis.call('ZREM', waiting, terms.waiter)
redis.call('ZREMRANGEBYSCORE', waiting, '-inf', '(' .. seconds(now()))
if redis.call('ZCARD', waiting) > 0 then return 'awaited' end
local r = redis.call('HMGET', job_key(terms.id), 'status', 'fence')
if not r[1] then return '' end
if is_over(r[1]) then return r[1] == 'cancelled' and 'was cancelled' or r[1] end
if RANK[r[1]] >= RANK['encoding'] and redis.call('HGET', job_key(terms.id), 'claimable') == '0' then return 'finishing' end
finish(terms.id, 'cancelled', '', now(), terms.retention_s, terms.rq)
return 'cancelled'
