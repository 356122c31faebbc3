-- Forget a job that has ended: its record, its number, its place in its owner's list, what RQ's tools show of it. ARGV:
-- terms as JSON. Returns "deleted" (also when it was before) and the pictures that no other job uses, whose files are the
-- caller's to remove; or the status of a job that has not ended, which stays.
local terms = cjson.decode(ARGV[1])
local id = terms.id
local r = redis.call('HMGET', job_key(id), 'status', 'number', 'owner', 'model', 'webhook', 'request')
if not r[1] then return {'deleted'} end
if not is_over(r[1]) then return {r[1]} end
local pictures = pictures_of(r[6])
redis.call('DEL', job_key(id), 'polyreel:waiting:' .. id, RQ_JOB .. id, RQ_RESULTS .. id,
  'polyreel:webhook:' .. id, 'polyreel:webhook:log:' .. id)
if r[2] then redis.call('DEL', 'polyreel:number:' .. r[2]) end
if r[3] then redis.call('ZREM', 'polyreel:jobs:' .. r[3], id) end
if r[4] then redis.call('ZREM', RQ_ENDS[r[1]].registry .. r[4], id) end
if r[5] and r[5] ~= '' then forget_delivery(id, receiver_of(r[5])) end
return {'deleted', unpack(unused_pictures(pictures, id))}
