-- Deliver a job's webhook once more, now, whatever became of it. ARGV: terms as JSON. Returns "pending", "" when there is no
-- such job, "open" when it has not ended, "none" when it has no webhook.
local terms = cjson.decode(ARGV[1])
local id = terms.id
local r = redis.call('HMGET', job_key(id), 'status', 'webhook')
if not r[1] then return '' end
if not r[2] or r[2] == '' then return 'none' end
if not is_over(r[1]) then return 'open' end
local t, receiver, state = now(), receiver_of(r[2]), 'polyreel:webhook:' .. id
redis.call('HSET', state, 'state', 'pending', 'tries', 0)
redis.call('HDEL', state, 'next_at')
expire_with_record(id, state)
local is_under_way = redis.call('ZSCORE', 'polyreel:webhooks:leases', id .. ' ' .. receiver)
if not is_under_way then await_delivery(id, receiver, t) end
return 'pending'
