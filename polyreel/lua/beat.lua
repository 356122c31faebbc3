-- A worker lives. ARGV: terms as JSON: what it says of itself, and which models it has in memory.
local terms = cjson.decode(ARGV[1])
redis.call('SET', 'polyreel:worker:' .. terms.worker, terms.about, 'EX', terms.for_s)
redis.call('HSET', 'polyreel:residents', terms.worker, cjson.encode({['until'] = now() + terms.for_s, models = terms.models}))
