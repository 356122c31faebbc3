-- What /metrics shows by labels, counted in the step that changes the job; see polyreel/metrics.py. BUCKETS and STAGES
-- come from there. A model's name is the last label.
local SERIES = 'polyreel:series'

local function count_series(by, ...)
  redis.call('HINCRBY', SERIES, table.concat({...}, '|'), string.format('%.0f', by))
end

local function observe(series, value, labels)
  local bucket = 'inf'
  for _, bound in ipairs(BUCKETS[series]) do
    if value <= bound then bucket = tostring(bound) break end
  end
  count_series(1, series, bucket, labels)
  count_series(math.floor(value * 1e6 + 0.5), series, 'sum', labels)
end

-- What the record of a job that has just ended says of its way.
local function count_end(id, status)
  local r = redis.call('HMGET', 'polyreel:job:' .. id, 'dialect', 'model', 'timings', 'total_steps', 'resumed_from')
  local model = r[2] or ''
  count_series(1, 'ended', r[1] or '', status, model)
  if status ~= 'succeeded' then return end
  local is_json, timings = pcall(cjson.decode, r[3] or '')
  if not is_json or type(timings) ~= 'table' then return end
  for _, stage in ipairs(STAGES) do
    if type(timings[stage]) == 'number' then observe('stage', timings[stage], stage .. '|' .. model) end
  end
  local steps = (tonumber(r[4] or '') or 0) - (tonumber(r[5] or '') or 0)
  if steps > 0 and type(timings.denoising) == 'number' then observe('step', timings.denoising / steps, model) end
end
