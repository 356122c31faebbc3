-- Tell live workers, or one, what to do with a model; or what all are to do from now on. ARGV: terms as JSON. Returns the
-- names of the workers that will hear of it.
local terms = cjson.decode(ARGV[1])
local t, given = now(), {}
if terms.noted then redis.call('XADD', 'polyreel:audit', 'MAXLEN', '~', terms.most, '*', unpack(terms.noted)) end
local residents = redis.call('HGETALL', 'polyreel:residents')
for i = 1, #residents, 2 do
  local worker = residents[i]
  if cjson.decode(residents[i + 1])['until'] > t and (terms.worker == '' or terms.worker == worker) then
    given[#given + 1] = worker
  end
end
table.sort(given)
if terms.action == 'pin' or terms.action == 'unpin' then
  redis.call('HSET', 'polyreel:pinned', terms.model, terms.action == 'pin' and '1' or '0')
  return given
end
for _, worker in ipairs(given) do
  local key = 'polyreel:commands:' .. worker
  redis.call('ZADD', key, seconds(t), terms.command) -- twice is once: the command carries its id
  redis.call('EXPIRE', key, terms.for_s)
end
return given
