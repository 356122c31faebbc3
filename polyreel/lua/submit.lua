-- Take a job in: admit it, write its record, put it into the order and into RQ's list. All or nothing, and twice is once.
-- Or only say what would become of it (`only_asks`), and write nothing.
-- ARGV: terms as JSON, then as many record fields as it says, then the fields of RQ's entry.
local terms = cjson.decode(ARGV[1])
local id, model = terms.id, terms.model
local have = redis.call('HMGET', job_key(id), 'number', 'created_at')
if have[1] then return {'taken', id, have[1], have[2]} end -- the reply was lost, and the client asks again
if terms.idempotency_key ~= '' then
  local seen = redis.call('HMGET', terms.idempotency_key, 'job', 'digest')
  if seen[1] and seen[2] ~= terms.digest then return {'other'} end
  local before = seen[1] and redis.call('HMGET', job_key(seen[1]), 'number', 'created_at', 'request')
  if before and before[3] then return {'again', seen[1], before[1], before[2]} end
end
if redis.call('ZCARD', 'polyreel:open') >= terms.max_open then return {'full'} end

-- The limits of its key, as polyreel/limits.py names them; one that is not set is not there. What is refused here has
-- used nothing. Each answer says how many seconds later the limit itself is free again.
local t, account, limits, rate = now(), terms.account, terms.limits, nil
if limits.max_queued then
  local open = tonumber(redis.call('HGET', 'polyreel:open:accounts', account) or '0')
  if open >= limits.max_queued then return {'limit', 'max_queued', '30'} end -- nobody knows when a job ends
end
if limits.requests_per_minute then
  -- The generic cell rate algorithm: each submit takes an interval, and a minute's worth may be taken ahead of time. In
  -- whole microseconds, so that it is exact: a minute is what so many intervals make. More than that is taken by nobody,
  -- unless the clock was put back.
  local interval, at = math.floor(6e7 / limits.requests_per_minute), math.floor(t * 1e6)
  local taken = math.max(at, tonumber(redis.call('GET', 'polyreel:rate:' .. account) or '0'))
  taken = math.min(taken, at + interval * limits.requests_per_minute)
  local early = taken - at - interval * (limits.requests_per_minute - 1)
  if early > 0 then return {'limit', 'requests_per_minute', seconds(early / 1e6)} end
  rate = {taken = taken + interval, for_ms = math.ceil((taken + interval - at) / 1000)}
end
if limits.gpu_seconds_per_day then
  local used = tonumber(redis.call('HGET', used_key(account, t), 'ms') or '0')
  local reserved = tonumber(redis.call('HGET', 'polyreel:open:ms', account) or '0')
  if used + reserved + terms.expected_ms > limits.gpu_seconds_per_day * 1000 then
    return {'limit', 'gpu_seconds_per_day', seconds(DAY_S - t % DAY_S)}
  end
  -- One of unknown length at a time: a thousand of them would all be taken before the first is measured.
  local is_unknown = terms.expected_ms == 0 and terms.ends == ''
  if is_unknown and redis.call('HEXISTS', 'polyreel:open:unknown', account) == 1 then
    return {'limit', 'unknown', '30'}
  end
end

if terms.only_asks then return {'room'} end

-- Not a bare INCR: a counter that a crash rolled back would hand a number out twice.
local last = tonumber(redis.call('GET', 'polyreel:number') or '0')
local number = math.max(last + 1, math.floor(t * 1000))
while redis.call('EXISTS', 'polyreel:number:' .. whole(number)) == 1 do number = number + 1 end
number = whole(number)
join_line(id, model, terms.flow, terms.cost)

redis.call('SET', 'polyreel:number', number)
redis.call('SET', 'polyreel:number:' .. number, id)
redis.call('HSET', job_key(id), 'number', number, 'claimable', 1, 'fence', 0, 'model', model,
  'schema', terms.schema, 'pixels', terms.pixels, unpack(ARGV, 2, 1 + terms.fields))
redis.call('HSET', job_key(id), 'created_at', seconds(t), 'expected_ms', whole(terms.expected_ms))
if limits.max_running then redis.call('HSET', job_key(id), 'max_running', whole(limits.max_running)) end
redis.call('ZADD', 'polyreel:open', seconds(t), id)
redis.call('ZADD', 'polyreel:jobs:' .. terms.owner, number, id)
redis.call('PERSIST', 'polyreel:jobs:' .. terms.owner)
redis.call('HINCRBY', 'polyreel:open:owners', terms.owner, 1)
redis.call('HINCRBY', 'polyreel:counts', 'submitted', 1)
count_series(1, 'submitted', terms.dialect, model)
count_open(id, 1)
if rate then redis.call('SET', 'polyreel:rate:' .. account, whole(rate.taken), 'PX', whole(rate.for_ms)) end
redis.call('HINCRBY', used_key(account, t), 'submits', 1)
redis.call('EXPIRE', used_key(account, t), 2 * DAY_S)
for _, picture in ipairs(terms.pictures) do
  redis.call('SADD', 'polyreel:pictures', picture)
  redis.call('SADD', 'polyreel:picture:' .. picture, id)
end
redis.call('HSET', RQ_JOB .. id, unpack(ARGV, 2 + terms.fields))
if terms.idempotency_key ~= '' then
  redis.call('DEL', terms.idempotency_key)
  redis.call('HSET', terms.idempotency_key, 'job', id, 'digest', terms.digest)
  redis.call('EXPIRE', terms.idempotency_key, terms.idempotency_s)
end
-- A rehearsal ends in the moment that it is taken in: no worker sees it.
if terms.ends ~= '' then finish(id, terms.ends, 0, t, terms.ending.retention_s, terms.ending.rq) end
return {'taken', id, number, seconds(t)}
