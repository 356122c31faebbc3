-- A courier takes webhooks that are due. ARGV: terms as JSON. Returns {id, attempt, try, receiver, 1 if proven, ...}.
local terms = cjson.decode(ARGV[1])
local t, taken = now(), {}
local leases, proven = 'polyreel:webhooks:leases', 'polyreel:webhooks:proven'
local couriers, mine = 'polyreel:webhooks:couriers', 'polyreel:webhooks:taken:' .. terms.courier
local last = redis.call('HMGET', mine, 'call', 'taken')
if last[1] == terms.call then return cjson.decode(last[2]) end -- the reply was lost, and the courier asks again

-- Not at every call: one that changes nothing costs the disk nothing.
if tonumber(redis.call('ZSCORE', couriers, terms.courier) or '0') < t - terms.courier_s / 3 then
  redis.call('ZADD', couriers, seconds(t), terms.courier)
  redis.call('EXPIRE', couriers, terms.courier_s)
end

-- 1. What a courier had that has died waits again, unless an older attempt turned out to have brought it. No lease ends
-- later than one of now, unless the clock was put back since.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', leases, '(' .. seconds(t + terms.lease_s), '+inf')) do
  redis.call('ZADD', leases, seconds(t + terms.lease_s), member)
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', '(' .. seconds(t))) do
  local id, receiver = string.match(member, '^(%S+) (.*)$')
  redis.call('ZREM', leases, member)
  if redis.call('HGET', 'polyreel:webhook:' .. id, 'state') ~= 'delivered' then await_delivery(id, receiver, t) end
end

-- 2. How many deliveries each receiver has now, and each owner, from all couriers.
local busy, owned = {}, {}
for _, member in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  local id, receiver = string.match(member, '^(%S+) (.*)$')
  local owner = redis.call('HGET', job_key(id), 'owner') or ''
  busy[receiver] = (busy[receiver] or 0) + 1
  owned[owner] = (owned[owner] or 0) + 1
end

-- Take the first of a line; nothing when none is due, or its owner has enough. One that is not to be delivered any more
-- is dropped.
local function take(receiver)
  local line = 'polyreel:webhooks:line:' .. receiver
  while true do
    local id = redis.call('ZRANGEBYSCORE', line, '-inf', seconds(t), 'LIMIT', 0, 1)[1]
    if not id then return nil end
    local owner = redis.call('HGET', job_key(id), 'owner') or ''
    if owner ~= '' and (owned[owner] or 0) >= terms.per_owner then return nil end
    redis.call('ZREM', line, id)
    local state = 'polyreel:webhook:' .. id
    if redis.call('EXISTS', job_key(id)) == 1 then
      local try = redis.call('HINCRBY', state, 'tries', 1)
      expire_with_record(id, state)
      if try <= terms.tries then
        owned[owner] = (owned[owner] or 0) + 1
        return id, redis.call('HINCRBY', state, 'attempts', 1), try
      end
      redis.call('HSET', state, 'state', 'failed') -- every courier that had it has died of it
      redis.call('HDEL', state, 'next_at')
    end
    redis.call('HINCRBY', 'polyreel:counts', 'webhooks_failed', 1)
  end
end

-- 3. Lines in the order of their firsts. Receivers that have taken nothing lately leave some of a courier's hands free.
local free, unproven, MOST = terms.free, terms.free_unproven, 1000

-- Which of some receivers took their last message, not long ago.
local function which_are_proven(receivers)
  local known = {}
  if receivers[1] then
    for i, last in ipairs(redis.call('ZMSCORE', proven, unpack(receivers))) do
      known[i] = tonumber(last or '0') > t - terms.proven_s
    end
  end
  return known
end

local function has_room(receiver, is_proven)
  return free > 0 and (is_proven or unproven > 0) and (busy[receiver] or 0) < terms.per_receiver
end

local function serve(receiver, is_proven)
  if not has_room(receiver, is_proven) then return end
  repeat
    local id, attempt, try = take(receiver)
    if not id then break end
    redis.call('ZADD', leases, seconds(t + terms.lease_s), id .. ' ' .. receiver)
    busy[receiver] = (busy[receiver] or 0) + 1
    free = free - 1
    if not is_proven then unproven = unproven - 1 end
    for _, part in ipairs({id, tostring(attempt), tostring(try), receiver, is_proven and '1' or '0'}) do
      taken[#taken + 1] = part
    end
  until not has_room(receiver, is_proven)
  settle_receiver(receiver)
end

local due = redis.call('ZRANGEBYSCORE', 'polyreel:webhooks', '-inf', seconds(t), 'LIMIT', 0, MOST)
local is_proven = which_are_proven(due)
for i, receiver in ipairs(due) do serve(receiver, is_proven[i]) end
-- Who makes up a thousand receivers must not keep those that are known from being looked at.
if free > 0 and #due == MOST then
  for _, receiver in ipairs(redis.call('ZREVRANGE', proven, 0, MOST - 1)) do
    local first = tonumber(redis.call('ZSCORE', 'polyreel:webhooks', receiver) or '')
    if first and first <= t then serve(receiver, which_are_proven({receiver})[1]) end
  end
end
if taken[1] then
  redis.call('HSET', mine, 'call', terms.call, 'taken', cjson.encode(taken))
  redis.call('EXPIRE', mine, 60)
end
return taken
