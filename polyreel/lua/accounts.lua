-- What each account has open and has used, which the limits of keys go by; see polyreel/limits.py. All scripts begin
-- with this, before common.lua.
--   polyreel:open:accounts         hash, account to its number of unfinished jobs
--   polyreel:open:ms               hash, account to the milliseconds of a device that these are expected to take
--   polyreel:open:unknown          hash, account to the number of those of which nobody knows how long they take
--   polyreel:used:{day}:{account}  hash of a day of UTC (days since the epoch): submits, and ms of a device
--   polyreel:rate:{account}        when its last submit counts no longer, microseconds since the epoch
--   polyreel:held                  hash, model all of whose jobs wait for their own accounts to the schema of who looked
-- A job's record has `expected_ms`; `max_running`, where its key has one; `charged_to`, the time up to which a claim has
-- been charged; `sharing`, how many jobs share the claim's call.
local DAY_S = 86400

local function record_key(id)
  return 'polyreel:job:' .. id
end

-- Jobs of configured keys, and of older versions, count by their owner.
local function account_of(account, owner)
  return account and account ~= '' and account or owner
end

local function used_key(account, t)
  return string.format('polyreel:used:%.0f:%s', math.floor(t / DAY_S), account)
end

local function count(hash, account, by)
  if by ~= 0 and redis.call('HINCRBY', hash, account, string.format('%.0f', by)) <= 0 then
    redis.call('HDEL', hash, account)
  end
end

-- A job is open from its submit to its end; a record of an older version was never counted.
local function count_open(id, by)
  local r = redis.call('HMGET', record_key(id), 'account', 'owner', 'expected_ms')
  local account = account_of(r[1], r[2])
  if not account or not r[3] then return end
  count('polyreel:open:accounts', account, by)
  count('polyreel:open:ms', account, by * tonumber(r[3]))
  if tonumber(r[3]) == 0 then count('polyreel:open:unknown', account, by) end
end

-- Charge an account for the time since a worker claimed the job. Each stretch once: an owner that was taken for dead and
-- has the job again goes on from where it was charged to.
local function charge(id, t)
  local r = redis.call('HMGET', record_key(id), 'claimable', 'charged_to', 'sharing', 'account', 'owner')
  local account = account_of(r[4], r[5])
  if r[1] ~= '0' or not r[2] or not account then return end
  local ms = math.floor(math.max(0, t - tonumber(r[2])) * 1000 / tonumber(r[3] or '1') + 0.5)
  redis.call('HSET', record_key(id), 'charged_to', string.format('%.6f', t))
  redis.call('HINCRBY', used_key(account, t), 'ms', string.format('%.0f', ms))
  redis.call('EXPIRE', used_key(account, t), 2 * DAY_S)
end

-- How many jobs of each account workers have now.
local function running_by_account()
  local running = {}
  for _, id in ipairs(redis.call('ZRANGE', 'polyreel:leases', 0, -1)) do
    local r = redis.call('HMGET', record_key(id), 'account', 'owner')
    local account = account_of(r[1], r[2])
    if account then running[account] = (running[account] or 0) + 1 end
  end
  return running
end
