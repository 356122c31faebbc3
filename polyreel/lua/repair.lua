-- Bring records and orders together again where a crash or an older version left one without the other.
-- ARGV: terms as JSON. Returns {id, what was done, ...}.
local terms = cjson.decode(ARGV[1])
-- One of all keepers; who comes too late does so in the next round.
if terms.every_s > 0 and not redis.call('SET', 'polyreel:repaired', '1', 'NX', 'EX', terms.every_s) then return {} end
local t, said, models = now(), {}, {}
local function done(id, what)
  said[#said + 1] = id
  said[#said + 1] = what
end

local function is_newer(schema) -- only who knows it may judge it
  return tonumber(schema or '1') > terms.schema
end

-- A record of version 1 has no model: there was one queue for all.
local function model_of_version_1(id, text)
  local is_json, request = pcall(cjson.decode, text or '')
  local model = is_json and type(request) == 'table' and request.model
  if not model then return nil end
  redis.call('HSET', job_key(id), 'model', model, 'execution', 'old')
  redis.call('LREM', RQ_QUEUE .. 'polyreel', 0, id)
  for _, entry in ipairs(redis.call('ZRANGE', RQ_WIP .. 'polyreel', 0, -1)) do
    if string.match(entry, '^[^:]*') == id then redis.call('ZREM', RQ_WIP .. 'polyreel', entry) end
  end
  if redis.call('EXISTS', RQ_JOB .. id) == 1 then redis.call('HSET', RQ_JOB .. id, 'origin', model) end
  return model
end

-- 1. Whoever waits or is leased is open.
for _, model in ipairs(redis.call('SMEMBERS', 'polyreel:models')) do models[model] = true end
local known = redis.call('ZRANGE', 'polyreel:leases', 0, -1)
for model in pairs(models) do
  for _, id in ipairs(redis.call('ZRANGE', 'polyreel:ready:' .. model, 0, -1)) do known[#known + 1] = id end
end
for _, id in ipairs(known) do
  local r = redis.call('HMGET', job_key(id), 'status', 'created_at')
  if r[1] and not is_over(r[1]) and redis.call('ZADD', 'polyreel:open', 'NX', r[2] or t, id) == 1 then
    done(id, 'put back among the unfinished')
  end
end

-- 2. Whoever is open waits or is leased.
for _, id in ipairs(redis.call('ZRANGE', 'polyreel:open', 0, -1)) do
  local r = redis.call('HMGET', job_key(id), 'status', 'claimable', 'model', 'request', 'execution', 'worker', 'schema')
  if not r[1] then
    redis.call('ZREM', 'polyreel:open', id)
    done(id, 'forgotten: its record is gone')
  elseif is_over(r[1]) then redis.call('ZREM', 'polyreel:open', id)
  elseif not is_newer(r[7]) then
    local model, execution = r[3], r[5] or 'old'
    if not model then model, execution = model_of_version_1(id, r[4]), 'old' end
    if model then
      models[model] = true
      local is_leased = redis.call('ZSCORE', 'polyreel:leases', id)
      if r[2] == '1' then
        if is_leased then unlease(id, model, execution) end
        if not redis.call('ZSCORE', 'polyreel:ready:' .. model, id) then
          return_to_line(id, model, t)
          done(id, 'put back into the order')
        end
      elseif not is_leased then
        redis.call('HSET', job_key(id), 'execution', execution)
        lease(id, model, r[6] or '', execution, t, terms.lease_s) -- its worker renews it, or it runs out
        done(id, 'given a lease')
      end
    end
  end
end
for _, id in ipairs(redis.call('ZRANGE', 'polyreel:leases', 0, -1)) do
  local status = redis.call('HGET', job_key(id), 'status')
  if not status or is_over(status) then
    redis.call('ZREM', 'polyreel:leases', id)
    done(id, 'its lease ended')
  end
end

-- 3. The order holds only who waits; RQ's list shows the order, and its registry the leases.
for model in pairs(models) do
  local ready, listed = 'polyreel:ready:' .. model, {}
  for _, id in ipairs(redis.call('ZRANGE', ready, 0, -1)) do
    local r = redis.call('HMGET', job_key(id), 'status', 'claimable', 'schema')
    if not is_newer(r[3]) and (not r[1] or is_over(r[1]) or r[2] ~= '1') then
      leave_line(id, model)
      done(id, 'taken out of the order')
    else listed[id] = true end
  end
  for _, id in ipairs(redis.call('LRANGE', RQ_QUEUE .. model, 0, -1)) do
    if listed[id] then listed[id] = nil
    else
      redis.call('LREM', RQ_QUEUE .. model, 1, id)
      done(id, 'taken out of the list: it does not wait')
    end
  end
  for id in pairs(listed) do redis.call('RPUSH', RQ_QUEUE .. model, id) end
  for _, entry in ipairs(redis.call('ZRANGE', RQ_WIP .. model, 0, -1)) do
    local id = string.match(entry, '^[^:]*')
    local execution = redis.call('HGET', job_key(id), 'execution')
    if not redis.call('ZSCORE', 'polyreel:leases', id) or entry ~= id .. ':' .. (execution or '') then
      redis.call('ZREM', RQ_WIP .. model, entry)
    end
  end
end
if redis.call('EXISTS', RQ_QUEUE .. 'polyreel') == 0 then redis.call('SREM', RQ_QUEUES, RQ_QUEUE .. 'polyreel') end

-- Counted anew: a count that a crash of another version left behind would refuse its owner for ever.
redis.call('DEL', 'polyreel:open:owners', 'polyreel:open:accounts', 'polyreel:open:ms', 'polyreel:open:unknown')
for _, id in ipairs(redis.call('ZRANGE', 'polyreel:open', 0, -1)) do
  local owner, number = unpack(redis.call('HMGET', job_key(id), 'owner', 'number'))
  if owner then
    redis.call('HINCRBY', 'polyreel:open:owners', owner, 1)
    if number then redis.call('ZADD', 'polyreel:jobs:' .. owner, 'NX', number, id) end -- nor its owner listed its jobs
    redis.call('HSETNX', job_key(id), 'expected_ms', 0) -- nobody has told of an older version's
    count_open(id, 1)
  end
end
return said
