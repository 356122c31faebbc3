-- What /metrics shows by labels, counted in the step that changes the job; see polyreel/metrics.py. BUCKETS and STAGES
-- come from there. A model's name is the last label.
local SERIES = 'polyreel:series'

local function count_series(by, ...)
  redis.call('HINCRBY', SERIES, table.concat({...}, '|'), string.format('%.0f', by))
end

-- Several changes are gathered, field to how much it rises, and made at once: two commands instead of one for each.
local function gather(changes, by, ...)
  local field = table.concat({...}, '|')
  changes[field] = (changes[field] or 0) + by
end

local function observe(changes, series, value, labels)
  local bucket = 'inf'
  for _, bound in ipairs(BUCKETS[series]) do
    if value <= bound then bucket = tostring(bound) break end
  end
  gather(changes, 1, series, bucket, labels)
  gather(changes, math.floor(value * 1e6 + 0.5), series, 'sum', labels)
end

local function count_all(changes)
  local fields, pairs_of = {}, {}
  for field in pairs(changes) do fields[#fields + 1] = field end
  for i, value in ipairs(redis.call('HMGET', SERIES, unpack(fields))) do
    pairs_of[2 * i - 1] = fields[i]
    pairs_of[2 * i] = string.format('%.0f', tonumber(value or '0') + changes[fields[i]])
  end
  redis.call('HSET', SERIES, unpack(pairs_of))
end

-- What the record of a job that has just ended says of its way.
local function count_end(id, status)
  local r = redis.call('HMGET', 'polyreel:job:' .. id, 'dialect', 'model', 'timings', 'total_steps', 'resumed_from')
  local model, changes = r[2] or '', {}
  gather(changes, 1, 'ended', r[1] or '', status, model)
  local is_json, timings = pcall(cjson.decode, r[3] or '')
  if status == 'succeeded' and is_json and type(timings) == 'table' then
    for _, stage in ipairs(STAGES) do
      if type(timings[stage]) == 'number' then observe(changes, 'stage', timings[stage], stage .. '|' .. model) end
    end
    local steps = (tonumber(r[4] or '') or 0) - (tonumber(r[5] or '') or 0)
    if steps > 0 and type(timings.denoising) == 'number' then
      observe(changes, 'step', timings.denoising / steps, model)
    end
  end
  count_all(changes)
end
