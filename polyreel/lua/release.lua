-- A worker gives a job back by itself. ARGV: terms as JSON (`counted`: the attempt stays counted). Returns 1 or 0.
local terms = cjson.decode(ARGV[1])
local r = redis.call('HMGET', job_key(terms.id), 'status', 'claimable', 'fence')
if not r[1] or is_over(r[1]) or r[2] == '1' or r[3] ~= tostring(terms.fence) then return 0 end
hand_back(terms.id, terms.counted, now(), terms)
redis.call('HDEL', job_key(terms.id), 'execution') -- so that its own late renewal does not take it again
return 1
