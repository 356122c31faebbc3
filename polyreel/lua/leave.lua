-- A client that waited for a job has gone: cancel the job unless somebody else waits for it, in one step. ARGV: terms as
-- JSON. Returns "awaited", or what cancel.lua says.
local terms = cjson.decode(ARGV[1])
local waiting = 'polyreel:waiting:' .. terms.id
redis.call('ZREM', waiting, terms.waiter)
redis.call('ZREMRANGEBYSCORE', waiting, '-inf', '(' .. seconds(now()))
if redis.call('ZCARD', waiting) > 0 then return 'awaited' end
return cancel(terms.id, terms, 'leave')
