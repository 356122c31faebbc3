-- What an account has used today. ARGV: terms as JSON. Returns {day, submits, ms, reserved ms, unfinished, running,
-- seconds until the day ends}; days are counted from the epoch.
local terms = cjson.decode(ARGV[1])
local t, account = now(), terms.account
local used = redis.call('HMGET', used_key(account, t), 'submits', 'ms')
return {
  whole(math.floor(t / DAY_S)), used[1] or '0', used[2] or '0', redis.call('HGET', 'polyreel:open:ms', account) or '0',
  redis.call('HGET', 'polyreel:open:accounts', account) or '0', whole(running_by_account()[account] or 0),
  seconds(DAY_S - t % DAY_S),
}
