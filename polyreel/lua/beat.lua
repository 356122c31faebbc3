-- A worker lives. ARGV: terms as JSON: what it says of itself, and which models it has in memory. Returns what it is
-- told: models and whether each is pinned, and the commands of the last minute, the oldest first.
local terms = cjson.decode(ARGV[1])
local t, commands = now(), 'polyreel:commands:' .. terms.worker
redis.call('SET', 'polyreel:worker:' .. terms.worker, terms.about, 'EX', terms.for_s)
redis.call('HSET', 'polyreel:residents', terms.worker, cjson.encode({['until'] = t + terms.for_s, models = terms.models}))
redis.call('ZREMRANGEBYSCORE', commands, '-inf', seconds(t - terms.commands_s))
return {redis.call('HGETALL', 'polyreel:pinned'), redis.call('ZRANGE', commands, 0, -1)}
