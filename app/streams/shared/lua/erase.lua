-- Erases a stream for good: its hash, its records, and its idempotency key if that still stands for it. What stands there
-- afterwards holds no text: a tombstone, and an entry that tells those who follow the stream.
-- KEYS: hash, entries, the tombstone, and perhaps the idempotency key.
-- ARGV: stream id, ms that the tombstone stands, ms that the entry stands, the place of the entry.
redis.call('SET', KEYS[3], '1', 'PX', ARGV[2])
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('XADD', KEYS[2], ARGV[4], 'erased', '')
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if KEYS[4] then
  local bound = guarded(redis.call, 'GET', KEYS[4])
  if type(bound) == 'string' and string.sub(bound, 1, #ARGV[1] + 1) == ARGV[1] .. ' ' then redis.call('DEL', KEYS[4]) end
end
return 1
