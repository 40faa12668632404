-- Leaves a message for a worker.
-- KEYS: its wake key.
-- ARGV: what, of which streams, ms that the key lives.
leave('XADD', KEYS[1], 'MAXLEN', '100', '*', ARGV[1], ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
