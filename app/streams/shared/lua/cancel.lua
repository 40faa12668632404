-- Asks the worker that generates a stream to end it. The message is heard at once, but others may push it out. The
-- member of the set stays until it is done.
-- KEYS: hash, that worker's wake key, the set of stops that it is asked for.
-- ARGV: owner, stream id, ms that these keys live.
-- Answers 1 when the stream goes on and is that worker's, else 0.
local have = redis.call('HMGET', KEYS[1], 'owner', 'end')
if have[1] ~= ARGV[1] or have[2] then return 0 end
redis.call('HSET', KEYS[1], 'cancel', '1')
leave('SADD', KEYS[3], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
leave('XADD', KEYS[2], 'MAXLEN', '100', '*', 'cancel', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
