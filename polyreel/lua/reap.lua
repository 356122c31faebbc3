-- Take jobs from those whose lease has run out, or from one worker that is known to be dead (`terms.worker`).
-- Returns {id, "queued" or "failed", ...}. With `terms.counted` false no attempt is charged.
local terms = cjson.decode(ARGV[1])
local t, said, due = now(), {}, nil
if terms.worker then
  redis.call('HDEL', 'polyreel:residents', terms.worker)
  redis.call('DEL', 'polyreel:worker:' .. terms.worker)
  due = {}
  for _, id in ipairs(redis.call('ZRANGE', 'polyreel:leases', 0, -1)) do
    if redis.call('HGET', job_key(id), 'worker') == terms.worker then due[#due + 1] = id end
  end
else
  -- Nobody reaped for a while: Redis was away, or stood still, and no lease could be renewed either. Leases that ran
  -- out meanwhile say nothing; their owners have one lease's time to come back.
  local reaper = redis.call('HMGET', 'polyreel:reaper', 'last', 'hold')
  redis.call('HSET', 'polyreel:reaper', 'last', seconds(t))
  local away = t - tonumber(reaper[1] or '0')
  if away > terms.gap_s or away < -1 then
    redis.call('HSET', 'polyreel:reaper', 'hold', seconds(t + terms.lease_s))
    if away < 0 then -- the clock was put back: by it, no lease may end later than if it were renewed now
      for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'polyreel:leases', seconds(t + terms.lease_s), '+inf')) do
        redis.call('ZADD', 'polyreel:leases', seconds(t + terms.lease_s), id)
      end
    end
    return said
  end
  if t < tonumber(reaper[2] or '0') then return said end
  due = redis.call('ZRANGEBYSCORE', 'polyreel:leases', '-inf', '(' .. seconds(t))
end
for _, id in ipairs(due) do
  local r = redis.call('HMGET', job_key(id), 'status', 'claimable')
  if not r[1] or is_over(r[1]) or r[2] == '1' then redis.call('ZREM', 'polyreel:leases', id)
  else
    said[#said + 1] = id
    said[#said + 1] = hand_back(id, terms.counted ~= false, t, terms)
    if terms.counted == false then redis.call('HDEL', job_key(id), 'execution') end -- see release.lua
  end
end
return said
