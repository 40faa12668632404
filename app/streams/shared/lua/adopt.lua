-- Gives a stream to another worker, once: its producer is gone.
-- KEYS: hash, the producer's sign of life.
-- ARGV: producer, its fence, the new owner.
-- Answers the head, or -1 when there is nothing to adopt.
local function adopt()
  local have = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'end', 'head')
  if have[1] ~= ARGV[1] or have[2] ~= ARGV[2] or have[3] or redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
  if not held(have[2]) or not whole(have[4]) then return -1 end
  redis.call('HSET', KEYS[1], 'owner', ARGV[3], 'fence', string.format('%d', tonumber(ARGV[2]) + 1))
  return tonumber(have[4])
end
local answer = guarded(adopt)
return type(answer) == 'number' and answer or -1
