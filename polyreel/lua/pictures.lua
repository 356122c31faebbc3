-- Forget those of some pictures that no job uses. ARGV: terms as JSON. Returns their keys; the files are the caller's to
-- remove.
return unused_pictures(cjson.decode(ARGV[1]).pictures, '')
