-- Notes that somebody begins to read a stream that goes on.
-- KEYS: hash.
-- Answers how many have attached by now, or 0 when it does not go on.
local function attach()
  local have = redis.call('HMGET', KEYS[1], 'fence', 'end')
  if not have[1] or have[2] then return 0 end
  return redis.call('HINCRBY', KEYS[1], 'attached', 1)
end
local answer = guarded(attach)
return type(answer) == 'number' and answer or 0
