-- Move jobs forward and set fields of each, all to the same. ARGV: terms as JSON, fields as a JSON list of names and
-- values, then id and fence of each ("" for a change that needs no claim). Returns 1 or 0 for each: 0 when it has ended,
-- or belongs to somebody else now. The terms may hold previews to show, by id.
local terms, fields = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
local rank, t, said = RANK[terms.status], now(), {}

local function advance(id, fence)
  local key = job_key(id)
  local r = redis.call('HMGET', key, 'status', 'claimable', 'fence', 'progress', 'ended_by', 'model', 'execution', 'worker')
  if not r[1] then return 0 end
  -- the same end by the same claim again is a write whose reply was lost, and not a second opinion
  if is_over(r[1]) then return (fence ~= '' and fence == r[5] and terms.status == r[1]) and 1 or 0 end
  if fence ~= '' then
    if r[3] ~= fence then return 0 end
    if r[2] == '1' and not retake(id, r[6], terms.worker, r[7], t, terms.lease_s) then return 0 end
  end
  for i = 1, #fields, 2 do
    if fields[i] == 'step' then -- the first report of an attempt says where it begins
      local done = tonumber(fields[i + 1]) - tonumber(redis.call('HGET', key, 'step') or '0')
      if done > 0 then count_series(done, 'steps', r[6]) end
    end
    if fields[i] ~= 'progress' or tonumber(fields[i + 1]) > tonumber(r[4]) then
      redis.call('HSET', key, fields[i], fields[i + 1])
    end
  end
  if rank >= RANK['encoding'] then redis.call('HSET', key, 'finishing', 1) end
  if terms.status == 'uploading' then -- takes nothing of a device, and may wait for a storage for minutes
    charge(id, t)
    redis.call('HDEL', key, 'charged_to')
  end
  if is_over(terms.status) then finish(id, terms.status, fence, t, terms.retention_s, terms.rq)
  elseif rank > RANK[r[1]] then redis.call('HSET', key, 'status', terms.status) end
  local preview = terms.previews and terms.previews[id]
  if preview and not is_over(terms.status) then
    redis.call('SET', 'polyreel:preview:' .. id, preview, 'EX', terms.previews_s)
  end
  return 1
end

for i = 3, #ARGV, 2 do said[#said + 1] = advance(ARGV[i], ARGV[i + 1]) end
return said
