-- Bring one record up to date, unless somebody else has done it, or it has gone.
-- ARGV: terms as JSON (id, its schema, '' for none; its request; what both become), then field and value, again and
-- again: those are added where they are missing, so nothing that is written meanwhile is lost.
local terms = cjson.decode(ARGV[1])
local key = job_key(terms.id)
local have = redis.call('HMGET', key, 'schema', 'request')
if not have[2] or (have[1] or '') ~= terms.schema or have[2] ~= terms.request then return 0 end
for i = 2, #ARGV, 2 do redis.call('HSETNX', key, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', key, 'request', terms.new_request, 'schema', terms.new_schema)
return 1
