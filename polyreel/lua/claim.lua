-- Choose a model, take the head of its order and the followers that may share its call, and lease them, in one step.
-- ARGV: terms as JSON. Returns {id, fence, id, fence, ...}.
local terms = cjson.decode(ARGV[1])
local mine = 'polyreel:claim:' .. terms.worker
local last = redis.call('HMGET', mine, 'claim', 'jobs')
if last[1] == terms.claim then return cjson.decode(last[2]) end -- the reply was lost, and the worker asks again

local t = now()

-- How many more jobs of an account may run, by the limit that its jobs carry. Counted when first asked: most keys have none.
local running
local function room(account, most)
  if not most then return math.huge end
  running = running or running_by_account()
  return tonumber(most) - (running[account] or 0)
end

-- Whether a worker of another machine should have a job, because the files of its video lie there.
local function lies_elsewhere(spooled_on, spooled_until)
  return spooled_on and spooled_on ~= '' and spooled_on ~= terms.machine and tonumber(spooled_until or '0') > t
end

-- The first waiting job of a model whose account may have one more; what is gone, ended or somebody's is not one. The
-- jobs of a line are of one account, so where one has to wait, the others of its line need not be read. Where all have
-- to, that is remembered until something changes: idle workers ask several times a second, and thousands may wait.
local function head(model)
  local ready, from, held, is_held = 'polyreel:ready:' .. model, 0, {}, false
  if redis.call('HGET', 'polyreel:held', model) == whole(terms.schema) then return nil end
  while true do
    local page, is_tidied = redis.call('ZRANGE', ready, from, from + 63, 'WITHSCORES'), false
    if #page == 0 then
      if is_held then
        redis.call('HSET', 'polyreel:held', model, whole(terms.schema))
        redis.call('EXPIRE', 'polyreel:held', 5)
      end
      return nil
    end
    for i = 1, #page, 2 do
      local id, place = page[i], tonumber(page[i + 1])
      local line = place >= 0 and place % LINES -- one that came back has none
      if not (line and held[line]) then
        local r = redis.call('HMGET', job_key(id), 'status', 'claimable', 'schema', 'created_at', 'account', 'owner',
          'max_running', 'spooled_on', 'spooled_until')
        if not r[1] or is_over(r[1]) or r[2] ~= '1' then
          leave_line(id, model)
          is_tidied = true
        elseif tonumber(r[3] or '1') <= terms.schema and not lies_elsewhere(r[8], r[9]) then
          if room(account_of(r[5], r[6]), r[7]) > 0 then return id, t - (tonumber(r[4] or '') or t) end
          is_held = true
          if line then held[line] = true end
        end
      end
    end
    from = is_tidied and 0 or from + 64 -- tidying moved the others
  end
end

local function set(list)
  local found = {}
  for _, value in ipairs(list) do found[value] = true end
  return found
end

-- Whether another live worker has a model in memory. Read when first asked: it takes time for each worker that lives, and
-- an idle worker looks for work ten times a second (benchmarks/sim_scale.py).
local warm
local function is_warm(model)
  if not warm then
    warm = {}
    local residents = redis.call('HGETALL', 'polyreel:residents')
    for i = 1, #residents, 2 do
      local said = cjson.decode(residents[i + 1])
      if said['until'] <= t then redis.call('HDEL', 'polyreel:residents', residents[i])
      elseif residents[i] ~= terms.worker then
        for _, resident in ipairs(said.models) do warm[resident] = true end
      end
    end
  end
  return warm[model]
end

-- The rule is polyreel.scheduling.choose, where it is explained; a test holds the two together.
local resident, rule, heads = set(terms.resident), terms.rule, {}
local at_hand, due, free

local function longer(a, b) -- the one of two models whose head has waited longer
  if not b or heads[a].waited > heads[b].waited or (heads[a].waited == heads[b].waited and a < b) then return a end
  return b
end

for _, model in ipairs(terms.models) do
  local id, waited = head(model)
  if id then
    heads[model] = {id = id, waited = waited}
    local loading_s = terms.swap_s[model] or rule.default_swap_s
    if resident[model] then at_hand = longer(model, at_hand)
    else
      local patience_s = rule.max_wait_s * (is_warm(model) and rule.peer_factor or 1)
      if waited > patience_s and terms.held_s >= rule.quantum_swaps * loading_s then due = longer(model, due) end
      if not is_warm(model) or waited >= rule.grace_swaps * loading_s then free = longer(model, free) end
    end
  end
end
local model = at_hand or free
if due and (not at_hand or heads[due].waited > heads[at_hand].waited) then model = due end
if not model then return {} end

local ready, first = 'polyreel:ready:' .. model, heads[model].id
local r = redis.call('HMGET', job_key(first), 'batch_key', 'pixels', 'attempts', 'account', 'owner', 'max_running')
local limit = 1
-- A job that was tried before may be what took its worker down: it runs alone, or it would take others down with it.
if r[1] and r[1] ~= '' and tonumber(r[3] or '0') == 0 then
  -- what was measured of the smallest size that is at least as large; nothing measured is one at a time
  for _, size in ipairs(terms.batches[model] or {}) do
    if size[1] >= tonumber(r[2]) then limit = size[2] break end
  end
end
local ids, taken = {first}, {}
if r[6] then taken[account_of(r[4], r[5])] = 1 end
if limit > 1 then
  for _, id in ipairs(redis.call('ZRANGE', ready, 0, 255)) do
    if #ids >= limit then break end
    local f = redis.call('HMGET', job_key(id), 'batch_key', 'claimable', 'status', 'schema', 'attempts', 'account',
      'owner', 'max_running', 'spooled_on', 'spooled_until')
    if id ~= first and f[1] == r[1] and f[2] == '1' and not is_over(f[3]) and tonumber(f[4] or '1') <= terms.schema
      and tonumber(f[5] or '0') == 0 and not lies_elsewhere(f[9], f[10]) then
      local account = account_of(f[6], f[7])
      if room(account, f[8]) > (taken[account] or 0) then
        ids[#ids + 1] = id
        if f[8] then taken[account] = (taken[account] or 0) + 1 end
      end
    end
  end
end
-- Only the head takes a turn: a follower from far behind must not put newcomers after all before it. A head whose turn
-- has passed waited for its account: its line gets no credit for that.
local fair, place = 'polyreel:fair:' .. model, tonumber(redis.call('ZSCORE', ready, first))
local turn, served = math.floor(place / LINES), tonumber(redis.call('HGET', 'polyreel:fair:' .. model, 'v') or '0')
if turn > served then redis.call('HSET', fair, 'v', whole(turn))
elseif place >= 0 and turn < served then delay_line(place % LINES, model, served - turn) end

local jobs, measured = {}, {}
for i, id in ipairs(ids) do
  local key, execution = job_key(id), terms.claim .. '-' .. i
  if i == 1 then take_turn(id, model) else leave_line(id, model) end
  local fence = redis.call('HINCRBY', key, 'fence', 1)
  if fence == 1 then
    observe(measured, 'wait', math.max(0, t - (tonumber(redis.call('HGET', key, 'created_at') or '') or t)), model)
  end
  redis.call('HINCRBY', key, 'attempts', 1)
  redis.call('HSET', key, 'claimable', 0, 'worker', terms.worker, 'started_at', seconds(t), 'execution', execution,
    'finishing', 0, 'charged_to', seconds(t), 'sharing', #ids)
  if RANK[redis.call('HGET', key, 'status')] < RANK['loading'] then redis.call('HSET', key, 'status', 'loading') end
  lease(id, model, terms.worker, execution, t, terms.lease_s)
  if redis.call('EXISTS', RQ_JOB .. id) == 1 then
    redis.call('HSET', RQ_JOB .. id, 'status', 'started', 'started_at', terms.iso, 'last_heartbeat', terms.iso,
      'worker_name', terms.worker)
  end
  jobs[#jobs + 1] = id
  jobs[#jobs + 1] = tostring(fence)
end
observe(measured, 'batch', #ids, model)
count_all(measured)
redis.call('HSET', mine, 'claim', terms.claim, 'jobs', cjson.encode(jobs))
redis.call('EXPIRE', mine, 300)
return jobs
