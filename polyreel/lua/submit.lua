-- Take a job in: admit it, write its record, put it into the order and into RQ's list. All or nothing, and twice is once.
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
local owned = tonumber(redis.call('HGET', 'polyreel:open:owners', terms.owner) or '0')
if owned >= terms.max_open_of_owner then return {'owner_full'} end

local t = now()
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
redis.call('HSET', job_key(id), 'created_at', seconds(t))
redis.call('ZADD', 'polyreel:open', seconds(t), id)
redis.call('ZADD', 'polyreel:jobs:' .. terms.owner, number, id)
redis.call('PERSIST', 'polyreel:jobs:' .. terms.owner)
redis.call('HINCRBY', 'polyreel:open:owners', terms.owner, 1)
redis.call('HINCRBY', 'polyreel:counts', 'submitted', 1)
redis.call('HSET', RQ_JOB .. id, unpack(ARGV, 2 + terms.fields))
if terms.idempotency_key ~= '' then
  redis.call('DEL', terms.idempotency_key)
  redis.call('HSET', terms.idempotency_key, 'job', id, 'digest', terms.digest)
  redis.call('EXPIRE', terms.idempotency_key, terms.idempotency_s)
end
return {'taken', id, number, seconds(t)}
