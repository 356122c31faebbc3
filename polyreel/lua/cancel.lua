-- Cancel a job. ARGV: terms as JSON. Returns the word for what it is now: "cancelled" when this call did it, "finishing"
-- when its file is being made already, another end's name when it had ended, "" when there is none.
local terms = cjson.decode(ARGV[1])
return cancel(terms.id, terms, '')
