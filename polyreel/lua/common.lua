-- Shared by all scripts. RANK and the names of RQ's keys come from polyreel/scripts.py.

-- Seconds since the epoch by Redis' own clock: the clocks of workers and API processes may differ by minutes.
local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local function seconds(x)
  return string.format('%.6f', x)
end

local function job_key(id)
  return 'polyreel:job:' .. id
end

local function is_over(status)
  return RANK[status] == RANK['succeeded']
end

-- Put a waiting job into the order of its model. RQ's list shows the same members to RQ's own tools.
local function enlist(id, model, tag)
  redis.call('ZADD', 'polyreel:ready:' .. model, tag, id)
  redis.call('SADD', 'polyreel:models', model)
  redis.call('LREM', RQ_QUEUE .. model, 1, id)
  redis.call('RPUSH', RQ_QUEUE .. model, id)
  redis.call('SADD', RQ_QUEUES, RQ_QUEUE .. model)
  if redis.call('EXISTS', RQ_JOB .. id) == 1 then
    redis.call('HSET', RQ_JOB .. id, 'status', 'queued', 'worker_name', '')
  end
end

local function unlist(id, model)
  redis.call('ZREM', 'polyreel:ready:' .. model, id)
  redis.call('LREM', RQ_QUEUE .. model, 1, id)
end

-- The deadline that counts lies in polyreel:leases. RQ compares its own score with the reader's clock and fails what has
-- run out, so there it lies a day ahead.
local function lease(id, model, worker, execution, t, lease_s)
  redis.call('ZADD', 'polyreel:leases', seconds(t + lease_s), id)
  redis.call('ZADD', RQ_WIP .. model, seconds(t + 86400), id .. ':' .. execution)
  local key = RQ_EXECUTION .. id .. ':' .. execution
  if redis.call('EXISTS', key) == 0 then
    redis.call('HSET', key, 'id', execution, 'created_at', seconds(t), 'worker_name', worker)
    redis.call('ZADD', RQ_EXECUTIONS .. id, seconds(t + 86400), execution)
  end
  redis.call('HSET', key, 'last_heartbeat', seconds(t))
  redis.call('EXPIRE', key, 86400)
  redis.call('EXPIRE', RQ_EXECUTIONS .. id, 86400)
end

local function unlease(id, model, execution)
  redis.call('ZREM', 'polyreel:leases', id)
  if execution and execution ~= '' then
    redis.call('ZREM', RQ_WIP .. model, id .. ':' .. execution)
    redis.call('DEL', RQ_EXECUTION .. id .. ':' .. execution, RQ_EXECUTIONS .. id)
  end
end

-- An owner that was taken for dead comes back while nobody else has the job: it has it again, under the same fence.
local function retake(id, model, worker, execution, t, lease_s)
  unlist(id, model)
  redis.call('HSET', job_key(id), 'claimable', 0, 'worker', worker)
  lease(id, model, worker, execution, t, lease_s)
  if redis.call('EXISTS', RQ_JOB .. id) == 1 then
    redis.call('HSET', RQ_JOB .. id, 'status', 'started', 'worker_name', worker)
  end
end

-- Everything that an end entails beside the record's own fields.
local function finish(id, status, fence, t, retention_s, rq)
  local key = job_key(id)
  local r = redis.call('HMGET', key, 'model', 'execution', 'number', 'owner')
  local model = r[1] or ''
  redis.call('HSET', key, 'status', status, 'claimable', 0, 'ended_by', fence, 'ended_at', seconds(t), 'stage', '')
  redis.call('EXPIRE', key, retention_s)
  if r[3] then redis.call('EXPIRE', 'polyreel:number:' .. r[3], retention_s) end
  redis.call('ZREM', 'polyreel:open', id)
  unlist(id, model)
  unlease(id, model, r[2])
  if r[4] and redis.call('HINCRBY', 'polyreel:open:owners', r[4], -1) <= 0 then
    redis.call('HDEL', 'polyreel:open:owners', r[4])
  end
  redis.call('HINCRBY', 'polyreel:counts', status, 1)
  if redis.call('EXISTS', RQ_JOB .. id) == 1 then
    local how = RQ_ENDS[status]
    redis.call('HSET', RQ_JOB .. id, 'status', how.status, 'ended_at', rq.iso, 'worker_name', '')
    redis.call('EXPIRE', RQ_JOB .. id, how.ttl)
    redis.call('ZADD', how.registry .. model, seconds(t + how.ttl), id)
    if how.type then
      local result = {'created_at', seconds(t), 'type', how.type}
      if status == 'succeeded' then result[5], result[6] = 'return_value', RQ_NOTHING
      elseif rq.error then result[5], result[6] = 'exc_string', rq.error end
      redis.call('XADD', RQ_RESULTS .. id, 'MAXLEN', '10', '*', unpack(result))
      redis.call('EXPIRE', RQ_RESULTS .. id, how.ttl)
    end
  end
end

-- Give a job that a worker has back to the queue, at its old place; or fail it when it has had its attempts.
local function hand_back(id, counted, t, terms)
  local key = job_key(id)
  local r = redis.call('HMGET', key, 'model', 'tag', 'execution', 'attempts', 'fence')
  if counted and tonumber(r[4]) >= terms.max_attempts then
    redis.call('HSET', key, 'error_code', terms.error_code, 'error_message', terms.error_message)
    finish(id, 'failed', r[5], t, terms.retention_s, terms.rq)
    return 'failed'
  end
  unlease(id, r[1], r[3])
  redis.call('HSET', key, 'claimable', 1, 'worker', '')
  if counted then redis.call('HINCRBY', 'polyreel:counts', 'requeued', 1)
  else redis.call('HINCRBY', key, 'attempts', -1) end
  enlist(id, r[1], r[2] or 0)
  if counted then redis.call('HINCRBY', RQ_JOB .. id, 'retries_left', -1) end
  return 'queued'
end
