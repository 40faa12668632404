-- Writes the end of a stream.
-- KEYS: hash, entries, and perhaps the idempotency key.
-- ARGV: fence, number of records, the end, its kind, ms that the entries are kept, ms that the stream is remembered,
-- whether the idempotency key is freed (1 or 0), and the "id fingerprint" that the key stands for if it is still ours.
-- Answers as commit.lua does but for `cancel`. `done` means that all is well. `done` and `ended` come with the number
-- of readers that have attached, as far as Valkey knows.
local function finish()
  local have = redis.call('HMGET', KEYS[1], 'fence', 'end', 'head', 'attached')
  local head, attached = whole(have[3]), whole(have[4]) or 0
  if not have[1] then return lost(KEYS[1]) end
  if not held(have[1]) then return {'damaged'} end
  if have[1] ~= ARGV[1] then return {'fenced', head or 0} end
  if have[2] then return {'ended', attached} end
  if not head then return {'damaged'} end
  if head < tonumber(ARGV[2]) then return {'behind', head} end
  if head > tonumber(ARGV[2]) then return {'damaged'} end
  if head > 0 and redis.call('EXISTS', KEYS[2]) == 0 then return {'missing'} end
  redis.call('XADD', KEYS[2], (head + 1) .. '-0', 'e', ARGV[3])
  redis.call('HSET', KEYS[1], 'end', ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  return {'done', attached}
end

local answer = guarded(finish)
if answer[1] == 'done' and KEYS[3] and guarded(redis.call, 'GET', KEYS[3]) == ARGV[8] then
  if ARGV[7] == '1' then redis.call('DEL', KEYS[3]) else redis.call('PEXPIRE', KEYS[3], ARGV[6]) end
end
return answer
