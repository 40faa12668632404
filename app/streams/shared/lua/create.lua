-- Begins a stream, or answers which stream an idempotency key stands for.
-- KEYS: the stream's hash, and perhaps the idempotency key.
-- ARGV: may it be made (1 or 0), ms to live, "id fingerprint", then the hash's fields and values.
-- Answers 1 (made), 0 (may not be made), or the "id fingerprint" that the key stands for.
if KEYS[2] then
  local bound = guarded(redis.call, 'GET', KEYS[2])
  if bound then return bound end
end
if ARGV[1] == '0' then return 0 end
if KEYS[2] then redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2]) end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
