-- Lengthen a worker's leases. ARGV: terms as JSON, then id and fence of each. Returns a word for each:
-- "ok", "lost" (somebody else has it) or the status in which it has ended.
local terms = cjson.decode(ARGV[1])
local t, said = now(), {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local r = redis.call('HMGET', job_key(id), 'status', 'fence', 'claimable', 'model', 'execution')
  local word = 'ok'
  if not r[1] or r[2] ~= ARGV[i + 1] then word = 'lost'
  elseif is_over(r[1]) then word = r[1]
  elseif r[3] == '1' then
    if not retake(id, r[4], terms.worker, r[5], t, terms.lease_s) then word = 'lost' end
  else lease(id, r[4], terms.worker, r[5], t, terms.lease_s) end
  said[#said + 1] = word
end
if redis.call('EXISTS', RQ_WORKER .. terms.worker) == 1 then redis.call('EXPIRE', RQ_WORKER .. terms.worker, 480) end
return said
