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

-- The order of a model's waiting jobs, as polyreel.scheduling.FairOrder explains it: the jobs of one flow (an owner in a
-- lane) form a line, and lines take turns. A place is turn * LINES + line: a whole number, so no two jobs have the same,
-- and one score says whose turn it is and which jobs are of one line. polyreel:fair:{model} holds v (the turn that is
-- served), lines (how many), l:{flow} (its line), f:{line} (its next free turn) and
-- c:{line} (what a turn of it costs). Doubles are exact to 2^53: 143 million turns without an idle moment.
local LINES, TURN = 2 ^ 20, 60

local function whole(x)
  return string.format('%.0f', x)
end

-- What claim.lua found to wait for its own accounts may not have to any more.
local function look_again()
  redis.call('DEL', 'polyreel:held')
end

-- RQ's list shows the members of the order to RQ's own tools.
local function show(id, model)
  look_again()
  redis.call('SADD', 'polyreel:models', model)
  redis.call('LREM', RQ_QUEUE .. model, 1, id)
  redis.call('RPUSH', RQ_QUEUE .. model, id)
  redis.call('SADD', RQ_QUEUES, RQ_QUEUE .. model)
  if redis.call('EXISTS', RQ_JOB .. id) == 1 then
    redis.call('HSET', RQ_JOB .. id, 'status', 'queued', 'worker_name', '')
  end
end

-- Put a new job at the end of its line. Returns its place.
local function join_line(id, model, flow, cost)
  local fair, ready = 'polyreel:fair:' .. model, 'polyreel:ready:' .. model
  if redis.call('ZCARD', ready) == 0 then redis.call('DEL', fair) end -- nobody waits, so nobody is owed anything
  local line = redis.call('HGET', fair, 'l:' .. flow)
  if not line then
    line = redis.call('HINCRBY', fair, 'lines', 1)
    redis.call('HSET', fair, 'l:' .. flow, line)
  end
  cost = math.floor(cost * TURN + 0.5)
  local f = redis.call('HMGET', fair, 'v', 'f:' .. line)
  local turn = math.max(tonumber(f[1] or '0'), tonumber(f[2] or '0'))
  redis.call('HSET', fair, 'f:' .. line, whole(turn + cost), 'c:' .. line, whole(cost))
  local place = whole(turn * LINES + line)
  redis.call('ZADD', ready, place, id)
  show(id, model)
  return place
end

-- Take a job out of the order and leave its turn with it: it was served at the head.
local function take_turn(id, model)
  redis.call('ZREM', 'polyreel:ready:' .. model, id)
  redis.call('LREM', RQ_QUEUE .. model, 1, id)
end

-- Take a job out of the order that had no turn (it shares another's call, or has ended): the younger ones of its line
-- move up, since a gap would let other lines pass.
local function leave_line(id, model)
  local ready = 'polyreel:ready:' .. model
  local free = tonumber(redis.call('ZSCORE', ready, id) or '-1')
  take_turn(id, model)
  if free < 0 then return end
  local line, behind, moves = free % LINES, redis.call('ZRANGEBYSCORE', ready, whole(free), '+inf', 'WITHSCORES'), {}
  for i = 1, #behind, 2 do
    local place = tonumber(behind[i + 1])
    if place % LINES == line then
      moves[#moves + 1], moves[#moves + 2] = whole(free), behind[i]
      free = place
    end
  end
  for i = 1, #moves, 1000 do redis.call('ZADD', ready, unpack(moves, i, math.min(i + 999, #moves))) end
  redis.call('HSET', 'polyreel:fair:' .. model, 'f:' .. whole(line), whole(math.floor(free / LINES)))
end

-- Put all jobs of a line so many turns later.
local function delay_line(line, model, turns)
  local ready, fair, moves = 'polyreel:ready:' .. model, 'polyreel:fair:' .. model, {}
  local waiting = redis.call('ZRANGEBYSCORE', ready, 0, '+inf', 'WITHSCORES')
  for i = 1, #waiting, 2 do
    local place = tonumber(waiting[i + 1])
    if place % LINES == line then
      moves[#moves + 1], moves[#moves + 2] = whole(place + turns * LINES), waiting[i]
    end
  end
  for i = 1, #moves, 1000 do redis.call('ZADD', ready, unpack(moves, i, math.min(i + 999, #moves))) end
  local free = redis.call('HGET', fair, 'f:' .. whole(line))
  if free then redis.call('HSET', fair, 'f:' .. whole(line), whole(tonumber(free) + turns)) end
end

-- Let a job wait again that had its turn, or that shared another's call: before all that wait, the oldest first. Such
-- places are below 0, where no line has any.
local function return_to_line(id, model, t)
  local created_at = tonumber(redis.call('HGET', job_key(id), 'created_at') or '') or t
  redis.call('ZADD', 'polyreel:ready:' .. model, seconds(created_at - 4e9), id)
  show(id, model)
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
  look_again()
  redis.call('ZREM', 'polyreel:leases', id)
  if execution and execution ~= '' then
    redis.call('ZREM', RQ_WIP .. model, id .. ':' .. execution)
    redis.call('DEL', RQ_EXECUTION .. id .. ':' .. execution, RQ_EXECUTIONS .. id)
  end
end

-- An owner that was taken for dead comes back while nobody else has the job: it has it again, under the same fence.
-- Returns false for one who gave the job back by himself: that was meant, and a renewal under way then comes too late.
local function retake(id, model, worker, execution, t, lease_s)
  if not execution or execution == '' then return false end
  take_turn(id, model)
  redis.call('HSET', job_key(id), 'claimable', 0, 'worker', worker)
  lease(id, model, worker, execution, t, lease_s)
  if redis.call('EXISTS', RQ_JOB .. id) == 1 then
    redis.call('HSET', RQ_JOB .. id, 'status', 'started', 'worker_name', worker)
  end
  return true
end

-- Webhooks wait in a line for each receiver (host and port of the URL), so that one that hangs holds up no other; see
-- polyreel/webhooks.py. `polyreel:webhooks` says when the first of each line is due.
local function receiver_of(url)
  local authority = string.match(url, '^[^:/?#]*://([^/?#]*)') or ''
  return string.lower(string.match(authority, '[^@]*$'))
end

local function settle_receiver(receiver)
  local first = redis.call('ZRANGE', 'polyreel:webhooks:line:' .. receiver, 0, 0, 'WITHSCORES')
  if first[2] then redis.call('ZADD', 'polyreel:webhooks', first[2], receiver)
  else redis.call('ZREM', 'polyreel:webhooks', receiver) end
end

local function await_delivery(id, receiver, at)
  redis.call('ZADD', 'polyreel:webhooks:line:' .. receiver, seconds(at), id)
  settle_receiver(receiver)
end

local function forget_delivery(id, receiver)
  redis.call('ZREM', 'polyreel:webhooks:line:' .. receiver, id)
  redis.call('ZREM', 'polyreel:webhooks:leases', id .. ' ' .. receiver)
  settle_receiver(receiver)
end

-- Let keys of a job go with its record, now if that is gone already.
local function expire_with_record(id, ...)
  local lives_ms = redis.call('PTTL', job_key(id))
  for _, key in ipairs({...}) do
    if lives_ms == -2 then redis.call('DEL', key)
    elseif lives_ms > 0 then redis.call('PEXPIRE', key, lives_ms) end
  end
end

-- The pictures that a request names, and those of them that no job uses which has a record; these are then forgotten.
-- Pictures of jobs that version 0.1 took in are in no set: they go by their age (workers/sweeper.py).
local function pictures_of(request)
  local found = {}
  for _, image in ipairs(request and cjson.decode(request).images or {}) do found[#found + 1] = image.key end
  return found
end

local function unused_pictures(pictures, without)
  local unused = {}
  for _, picture in ipairs(pictures) do
    local users, used = 'polyreel:picture:' .. picture, false
    for _, id in ipairs(redis.call('SMEMBERS', users)) do
      if id ~= without and redis.call('EXISTS', job_key(id)) == 1 then used = true
      else redis.call('SREM', users, id) end
    end
    if not used and redis.call('SREM', 'polyreel:pictures', picture) == 1 then unused[#unused + 1] = picture end
  end
  return unused
end

-- Everything that an end entails beside the record's own fields.
local function finish(id, status, fence, t, retention_s, rq)
  local key = job_key(id)
  local r = redis.call('HMGET', key, 'model', 'execution', 'number', 'owner', 'keep_s', 'webhook')
  local model, keep_s, longest_s = r[1] or '', tonumber(r[5] or '') or 0, retention_s
  if keep_s > 0 then retention_s = math.min(retention_s, math.ceil(keep_s)) end
  charge(id, t)
  count_open(id, -1)
  redis.call('HSET', key, 'status', status, 'claimable', 0, 'ended_by', fence, 'ended_at', seconds(t), 'stage', '')
  redis.call('EXPIRE', key, retention_s)
  if r[3] then redis.call('EXPIRE', 'polyreel:number:' .. r[3], retention_s) end
  redis.call('ZREM', 'polyreel:open', id)
  leave_line(id, model)
  unlease(id, model, r[2])
  redis.call('DEL', 'polyreel:preview:' .. id)
  if r[4] then
    local index = 'polyreel:jobs:' .. r[4]
    if redis.call('HINCRBY', 'polyreel:open:owners', r[4], -1) <= 0 then
      redis.call('HDEL', 'polyreel:open:owners', r[4])
      redis.call('EXPIRE', index, longest_s) -- with the last record that it can name
    end
    -- Each end tidies a few, so that the index of an owner who is never idle and never lists stays small.
    for _, old in ipairs(redis.call('ZRANGE', index, 0, 4)) do
      if redis.call('EXISTS', job_key(old)) == 0 then redis.call('ZREM', index, old) end
    end
  end
  redis.call('HINCRBY', 'polyreel:counts', status, 1)
  count_end(id, status)
  if r[6] and r[6] ~= '' then await_delivery(id, receiver_of(r[6]), t) end
  if redis.call('EXISTS', RQ_JOB .. id) == 1 then
    local how = RQ_ENDS[status]
    redis.call('HSET', RQ_JOB .. id, 'status', how.status, 'ended_at', rq.iso, 'worker_name', '')
    redis.call('EXPIRE', RQ_JOB .. id, how.ttl)
    -- RQ tidies its registries when somebody asks for them, and perhaps nobody ever does
    redis.call('ZREMRANGEBYSCORE', how.registry .. model, '-inf', seconds(t))
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

-- End a job that has not begun to be stored, on somebody's word (`by`: '', or 'leave' for clients that have gone).
-- Returns what it is now, see cancel.lua.
local function cancel(id, terms, by)
  local r = redis.call('HMGET', job_key(id), 'status', 'claimable', 'finishing')
  if not r[1] then return '' end
  if is_over(r[1]) then return r[1] == 'cancelled' and 'was cancelled' or r[1] end
  local t, deadline = now(), redis.call('ZSCORE', 'polyreel:leases', id)
  -- Not the status, which never goes back: a second attempt may be denoising what a first one was about to store.
  if r[3] == '1' and r[2] == '0' and deadline and tonumber(deadline) > t then return 'finishing' end
  finish(id, 'cancelled', by, t, terms.retention_s, terms.rq)
  return 'cancelled'
end

-- How long a job is left to the machine on whose disk the files of its video lie, seconds: time for a worker to start.
local SPOOLED_S = 120

-- Give a job that a worker has back to the queue, before all that wait; or fail it when it has had its attempts.
local function hand_back(id, counted, t, terms)
  local key = job_key(id)
  local r = redis.call('HMGET', key, 'model', 'execution', 'attempts', 'fence')
  if counted and tonumber(r[3]) >= terms.max_attempts then
    redis.call('HSET', key, 'error_code', terms.error_code, 'error_message', terms.error_message)
    finish(id, 'failed', r[4], t, terms.retention_s, terms.rq)
    return 'failed'
  end
  charge(id, t)
  unlease(id, r[1], r[2])
  redis.call('HSET', key, 'claimable', 1, 'worker', '')
  if (redis.call('HGET', key, 'spooled_on') or '') ~= '' then
    redis.call('HSET', key, 'spooled_until', seconds(t + SPOOLED_S))
  end
  if counted then redis.call('HINCRBY', 'polyreel:counts', 'requeued', 1)
  else redis.call('HINCRBY', key, 'attempts', -1) end
  return_to_line(id, r[1], t)
  if counted and redis.call('EXISTS', RQ_JOB .. id) == 1 then
    redis.call('HINCRBY', RQ_JOB .. id, 'retries_left', -1)
  end
  return 'queued'
end
