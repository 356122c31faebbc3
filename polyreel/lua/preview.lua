-- Show pictures of videos in the making. ARGV: terms as JSON, then id, fence and what is to be kept of each job. A job
-- that has ended, or that somebody else has by now, gets none: nobody would take it away again.
local terms = cjson.decode(ARGV[1])
for i = 2, #ARGV, 3 do
  local r = redis.call('HMGET', job_key(ARGV[i]), 'status', 'claimable', 'fence')
  if r[1] and not is_over(r[1]) and r[2] == '0' and r[3] == ARGV[i + 1] then
    redis.call('SET', 'polyreel:preview:' .. ARGV[i], ARGV[i + 2], 'EX', terms.for_s)
  end
end
