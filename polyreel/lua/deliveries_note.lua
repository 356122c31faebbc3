-- A courier notes how an attempt went. ARGV: terms as JSON, the attempt's entry for the log as JSON. Returns what becomes
-- of the delivery: "delivered", "failed", "pending".
local terms, entry = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
local t = now()
local id, receiver = terms.id, terms.receiver
local state, history = 'polyreel:webhook:' .. id, 'polyreel:webhook:log:' .. id
local line, member = 'polyreel:webhooks:line:' .. receiver, id .. ' ' .. receiver
local was = redis.call('HMGET', state, 'attempts', 'state', 'noted', 'tries')
if was[3] == tostring(entry.attempt) then return was[2] end -- the reply to this very note was lost
-- An older one of two: its lease ran out, and another courier has the delivery by now.
local is_newest = was[1] == tostring(entry.attempt)
if is_newest then redis.call('ZREM', 'polyreel:webhooks:leases', member) end

local function is_over_by(what)
  redis.call('ZREM', line, id)
  redis.call('HDEL', state, 'next_at')
  redis.call('HINCRBY', 'polyreel:counts', 'webhooks_' .. what, 1)
  return what
end

local becomes = was[2] or 'pending'
if terms.outcome == 'delivered' then
  redis.call('ZADD', 'polyreel:webhooks:proven', seconds(t), receiver)
  redis.call('ZREMRANGEBYSCORE', 'polyreel:webhooks:proven', '-inf', seconds(t - terms.proven_s))
  redis.call('EXPIRE', 'polyreel:webhooks:proven', terms.proven_s)
  if becomes ~= 'delivered' then becomes = is_over_by('delivered') end -- whoever brought it
elseif is_newest then
  redis.call('ZREM', 'polyreel:webhooks:proven', receiver)
  if becomes == 'delivered' then redis.call('ZREM', line, id) -- by an older attempt, which came to its end later
  elseif terms.outcome == 'failed' and was[4] ~= '0' then becomes = is_over_by('failed')
  else
    -- No try yet of those that somebody asked for while this one was under way: the first is due now.
    becomes, entry.next_at = 'pending', was[4] == '0' and t or t + terms.after_s
    redis.call('HSET', state, 'next_at', seconds(entry.next_at))
    redis.call('HINCRBY', 'polyreel:counts', 'webhooks_retried', 1)
    await_delivery(id, receiver, entry.next_at)
  end
end
settle_receiver(receiver)

entry.at = t
redis.call('RPUSH', history, cjson.encode(entry))
redis.call('LTRIM', history, -terms.log_length, -1)
redis.call('HSET', state, 'state', becomes, 'noted', entry.attempt)
expire_with_record(id, state, history)
return becomes
