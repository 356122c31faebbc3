-- Bring records and orders together again where a crash or an older version left one without the other.
-- ARGV: terms as JSON. Returns {id, what was done, ...}.
local terms = cjson.decode(ARGV[1])
local t, said, models = now(), {}, {}
local function done(id, what)
  said[#said + 1] = id
  said[#said + 1] = what
end

for _, id in ipairs(redis.call('ZRANGE', 'polyreel:open', 0, -1)) do
  local r = redis.call('HMGET', job_key(id), 'status', 'claimable', 'model', 'tag', 'request', 'execution', 'worker')
  if not r[1] then
    redis.call('ZREM', 'polyreel:open', id)
    done(id, 'forgotten: its record is gone')
  elseif is_over(r[1]) then
    redis.call('ZREM', 'polyreel:open', id)
  else
    local model = r[3]
    if not model then -- a record of version 1, which had one queue for all models
      local is_json, request = pcall(cjson.decode, r[5] or '')
      model = is_json and type(request) == 'table' and request.model or nil
      if model then
        redis.call('HSET', job_key(id), 'model', model, 'tag', 0, 'execution', 'old')
        redis.call('LREM', RQ_QUEUE .. 'polyreel', 0, id)
      end
    end
    if model then
      models[model] = true
      if r[2] == '1' then
        if not redis.call('ZSCORE', 'polyreel:ready:' .. model, id) then
          enlist(id, model, r[4] or 0)
          done(id, 'put back into the order')
        end
      elseif not redis.call('ZSCORE', 'polyreel:leases', id) then
        lease(id, model, r[7] or '', r[6] or 'old', t, terms.lease_s) -- its worker renews it, or it runs out
        done(id, 'given a lease')
      end
    end
  end
end

for _, model in ipairs(redis.call('SMEMBERS', 'polyreel:models')) do models[model] = true end
for model in pairs(models) do
  local ready, listed = 'polyreel:ready:' .. model, {}
  for _, id in ipairs(redis.call('ZRANGE', ready, 0, -1)) do
    local r = redis.call('HMGET', job_key(id), 'status', 'claimable')
    if not r[1] or is_over(r[1]) or r[2] ~= '1' then
      unlist(id, model)
      done(id, 'taken out of the order')
    else listed[id] = true end
  end
  for _, id in ipairs(redis.call('LRANGE', RQ_QUEUE .. model, 0, -1)) do
    if listed[id] then listed[id] = nil
    else
      redis.call('LREM', RQ_QUEUE .. model, 1, id)
      done(id, 'taken out of the list: there is no such job')
    end
  end
  for id in pairs(listed) do redis.call('RPUSH', RQ_QUEUE .. model, id) end
  for _, entry in ipairs(redis.call('ZRANGE', RQ_WIP .. model, 0, -1)) do
    if not redis.call('ZSCORE', 'polyreel:leases', string.match(entry, '^[^:]*')) then
      redis.call('ZREM', RQ_WIP .. model, entry)
    end
  end
end

-- Counted anew: a count that a crash of another version left behind would refuse its owner for ever.
redis.call('DEL', 'polyreel:open:owners')
for _, id in ipairs(redis.call('ZRANGE', 'polyreel:open', 0, -1)) do
  local owner = redis.call('HGET', job_key(id), 'owner')
  if owner then redis.call('HINCRBY', 'polyreel:open:owners', owner, 1) end
end
return said
