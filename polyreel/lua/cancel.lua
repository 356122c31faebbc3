-- Cancel a job. ARGV: terms as JSON. Returns the word for what it is now: "cancelled" when this call did it, "finishing"
-- when its file is being made already, another end's name when it had ended, "" when there is none.
local terms = cjson.decode(ARGV[1])
local r = redis.call('HMGET', job_key(terms.id), 'status', 'fence')
if not r[1] then return '' end
if is_over(r[1]) then return r[1] == 'cancelled' and 'was cancelled' or r[1] end
if RANK[r[1]] >= RANK['encoding'] and redis.call('HGET', job_key(terms.id), 'claimable') == '0' then return 'finishing' end
finish(terms.id, 'cancelled', '', now(), terms.retention_s, terms.rq)
return 'cancelled'
