-- Stands before every script: what makes a damaged record the fault of one stream alone.

-- Answers 'damaged' where a step fails at a record. What Valkey refuses is raised.
local function guarded(step, ...)
  local done, answer = pcall(step, ...)
  if done then return answer end
  local why = type(answer) == 'table' and answer.err or tostring(answer)
  for _, fault in ipairs({'WRONGTYPE', 'ERR ', 'attempt to'}) do
    if string.find(why, fault, 1, true) then return {'damaged'} end
  end
  error(answer, 0)
end

-- Reads a count as it was written. nil for anything else.
local function whole(text)
  local number = text and (text == '0' or string.find(text, '^[1-9]%d*$')) and tonumber(text)
  return number and number < 2^53 and number or nil
end

-- Tells whether a text is a fence that some worker holds. Anything else protects nothing.
local function held(text)
  return (whole(text) or 0) > 0
end

-- Names the key that stands for a stream that was erased.
local function tombstone(hash)
  return hash .. ':erased'
end

-- Answers for a stream that is not there: it was erased for good, or it is missing.
local function lost(hash)
  return {redis.call('EXISTS', tombstone(hash)) == 1 and 'erased' or 'missing'}
end

-- Adds something at a key that nobody would miss. What is damaged there is deleted.
local function leave(command, key, ...)
  local answer = guarded(redis.call, command, key, ...)
  if type(answer) == 'table' and answer[1] == 'damaged' then
    redis.call('DEL', key)
    redis.call(command, key, ...)
  end
end
