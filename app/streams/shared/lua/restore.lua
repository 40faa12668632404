-- Begins a stream anew that Valkey has lost, or that is damaged. Only the worker that holds it may.
-- KEYS: hash, entries, and perhaps the idempotency key.
-- ARGV: fence, ms to live, "id fingerprint", then the hash's fields and values.
-- Answers 1, or 0 when it is another worker's or was erased.
local fence = guarded(redis.call, 'HGET', KEYS[1], 'fence')
if type(fence) == 'string' and held(fence) and fence ~= ARGV[1] then return 0 end
if redis.call('EXISTS', tombstone(KEYS[1])) == 1 then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if KEYS[3] then redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[2], 'NX') end
return 1
