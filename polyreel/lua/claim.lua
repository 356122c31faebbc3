-- Choose a model, take the head of its order and the followers that may share its call, and lease them, in one step.
-- ARGV: terms as JSON. Returns {id, fence, id, fence, ...}.
local terms = cjson.decode(ARGV[1])
local mine = 'polyreel:claim:' .. terms.worker
local last = redis.call('HMGET', mine, 'claim', 'jobs')
if last[1] == terms.claim then return cjson.decode(last[2]) end -- the reply was lost, and the worker asks again

local t = now()

-- The first waiting job of a model; what is gone, ended or somebody's is not one.
local function head(model)
  local ready = 'polyreel:ready:' .. model
  for _, id in ipairs(redis.call('ZRANGE', ready, 0, 63)) do
    local r = redis.call('HMGET', job_key(id), 'status', 'claimable', 'schema', 'created_at')
    if not r[1] or is_over(r[1]) or r[2] ~= '1' then leave_line(id, model)
    elseif tonumber(r[3] or '1') <= terms.schema then return id, t - (tonumber(r[4] or '') or t) end
  end
end

local function set(list)
  local found = {}
  for _, value in ipairs(list) do found[value] = true end
  return found
end

local warm = {} -- what other live workers have in memory
local residents = redis.call('HGETALL', 'polyreel:residents')
for i = 1, #residents, 2 do
  local said = cjson.decode(residents[i + 1])
  if said['until'] <= t then redis.call('HDEL', 'polyreel:residents', residents[i])
  elseif residents[i] ~= terms.worker then
    for _, model in ipairs(said.models) do warm[model] = true end
  end
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
      local patience_s = rule.max_wait_s * (warm[model] and rule.peer_factor or 1)
      if waited > patience_s and terms.held_s >= rule.quantum_swaps * loading_s then due = longer(model, due) end
      if not warm[model] or waited >= rule.grace_swaps * loading_s then free = longer(model, free) end
    end
  end
end
local model = at_hand or free
if due and (not at_hand or heads[due].waited > heads[at_hand].waited) then model = due end
if not model then return {} end

local ready, first = 'polyreel:ready:' .. model, heads[model].id
local r = redis.call('HMGET', job_key(first), 'batch_key', 'pixels', 'attempts')
local limit = 1
-- A job that was tried before may be what took its worker down: it runs alone, or it would take others down with it.
if r[1] and r[1] ~= '' and tonumber(r[3] or '0') == 0 then
  -- what was measured of the smallest size that is at least as large; nothing measured is one at a time
  for _, size in ipairs(terms.batches[model] or {}) do
    if size[1] >= tonumber(r[2]) then limit = size[2] break end
  end
end
local ids = {first}
if limit > 1 then
  for _, id in ipairs(redis.call('ZRANGE', ready, 0, 255)) do
    if #ids >= limit then break end
    local f = redis.call('HMGET', job_key(id), 'batch_key', 'claimable', 'status', 'schema', 'attempts')
    if id ~= first and f[1] == r[1] and f[2] == '1' and not is_over(f[3]) and tonumber(f[4] or '1') <= terms.schema
      and tonumber(f[5] or '0') == 0 then
      ids[#ids + 1] = id
    end
  end
end
-- Only the head takes a turn: a follower from far behind must not put newcomers after all before it.
local fair, place = 'polyreel:fair:' .. model, redis.call('ZSCORE', ready, first)
local turn = math.floor(tonumber(place) / LINES)
if turn > tonumber(redis.call('HGET', fair, 'v') or '0') then redis.call('HSET', fair, 'v', whole(turn)) end

local jobs = {}
for i, id in ipairs(ids) do
  local key, execution = job_key(id), terms.claim .. '-' .. i
  if i == 1 then take_turn(id, model) else leave_line(id, model) end
  local fence = redis.call('HINCRBY', key, 'fence', 1)
  redis.call('HINCRBY', key, 'attempts', 1)
  redis.call('HSET', key, 'claimable', 0, 'worker', terms.worker, 'started_at', seconds(t), 'execution', execution,
    'finishing', 0)
  if RANK[redis.call('HGET', key, 'status')] < RANK['loading'] then redis.call('HSET', key, 'status', 'loading') end
  lease(id, model, terms.worker, execution, t, terms.lease_s)
  if redis.call('EXISTS', RQ_JOB .. id) == 1 then
    redis.call('HSET', RQ_JOB .. id, 'status', 'started', 'started_at', terms.iso, 'last_heartbeat', terms.iso,
      'worker_name', terms.worker)
  end
  jobs[#jobs + 1] = id
  jobs[#jobs + 1] = tostring(fence)
end
redis.call('HSET', mine, 'claim', terms.claim, 'jobs', cjson.encode(jobs))
redis.call('EXPIRE', mine, 300)
return jobs
