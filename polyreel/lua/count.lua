-- Count something that happened outside of these scripts, once: a call whose reply was lost is made again. ARGV: terms as
-- JSON. Returns 1, or 0 where it was counted before.
local terms = cjson.decode(ARGV[1])
if not redis.call('SET', 'polyreel:counted:' .. terms.once, '1', 'NX', 'EX', terms.for_s) then return 0 end
count_series(1, unpack(terms.series))
return 1
