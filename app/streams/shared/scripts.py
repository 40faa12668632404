"""What the engine does in one step each: Lua, so that a look and the write that depends on it cannot be torn apart.

A stream is a hash and, once it has a chunk, a stream key with an entry for each chunk, `<sequence>-0`, and one for
its end, `<tokens + 1>-0`. The hash says whose it is: only who holds its `fence` writes. Every key has a time to
live from its first command.

Answers of `COMMIT`, for each stream: a number when all is well (the head), else a list: `missing` (or a part of it is),
`ended` by the same writer, `damaged` (what is there is none of this program's), and with the head that there is
`fenced`, `behind`, or `cancel`: all is well, and somebody has asked for its end. `FINISH` answers the same but for
`cancel`; it says `done` when all is well, and how many readers have been noted after that, as after `ended`.

Workers of the version before run their own scripts on the same keys: what is added here must be nothing to them.
"""

from __future__ import annotations

__all__ = ["ADOPT", "ATTACH", "CANCEL", "COMMIT", "CREATE", "FINISH", "RESTORE", "WAKE"]

_GUARDED = """
-- What fails at a record is 'damaged', for this one alone. What the engine refuses is raised.
local function guarded(step, ...)
  local done, answer = pcall(step, ...)
  if done then return answer end
  local why = type(answer) == 'table' and answer.err or tostring(answer)
  for _, fault in ipairs({'WRONGTYPE', 'ERR ', 'attempt to'}) do
    if string.find(why, fault, 1, true) then return {'damaged'} end
  end
  error(answer, 0)
end

-- A count as it was written; nil for anything else.
local function whole(text)
  local number = text and (text == '0' or string.find(text, '^[1-9]%d*$')) and tonumber(text)
  return number and number < 2^53 and number or nil
end

-- A fence, which somebody's writer holds; false for anything else, which protects nothing.
local function held(text)
  return (whole(text) or 0) > 0
end

-- Leaves something at a key that nobody would miss: what is damaged there is deleted.
local function leave(command, key, ...)
  local answer = guarded(redis.call, command, key, ...)
  if type(answer) == 'table' and answer[1] == 'damaged' then
    redis.call('DEL', key)
    redis.call(command, key, ...)
  end
end
"""

CREATE = f"""{_GUARDED}
-- KEYS: hash, and perhaps an idempotency key. ARGV: may it be made (1 or 0), ms to live, "id fingerprint",
-- then the hash's fields and values. Answers 1 (made), 0 (may not), or "id fingerprint" that the key stands for.
if KEYS[2] then
  local bound = guarded(redis.call, 'GET', KEYS[2])
  if bound then return bound end
end
if ARGV[1] == '0' then return 0 end
if KEYS[2] then redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2]) end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

COMMIT = f"""{_GUARDED}
-- KEYS: hash and entries of each stream. ARGV: ms to live, then for each stream: fence, the sequence number of its
-- first chunk, how many chunks (0: only look), the chunks. A chunk that is there already is passed over.
local function commit(hash, entries, fence, first, chunk, last)
  local have = redis.call('HMGET', hash, 'fence', 'end', 'head', 'bytes', 'cancel')
  local head, bytes = whole(have[3]), whole(have[4])
  if not have[1] then return {{'missing'}} end
  if not held(have[1]) then return {{'damaged'}} end
  if have[1] ~= fence then return {{'fenced', head or 0}} end
  if have[2] then return {{'ended'}} end
  if not head or not bytes then return {{'damaged'}} end
  if first > head + 1 then return {{'behind', head}} end
  if head > 0 and first + last - chunk == head and redis.call('EXISTS', entries) == 0 then return {{'missing'}} end
  local known, answer = head, nil
  for i = chunk + head + 1 - first, last do
    if head == 0 then
      redis.call('XADD', entries, '1-0', 't', ARGV[i])
      redis.call('PEXPIRE', entries, ARGV[1])
    elseif not redis.call('XADD', entries, 'NOMKSTREAM', (head + 1) .. '-0', 't', ARGV[i]) then
      answer = {{'missing'}}
      break
    end
    head = head + 1
    bytes = bytes + #ARGV[i]
  end
  if head > known then redis.call('HSET', hash, 'head', head, 'bytes', bytes) end
  return answer or have[5] and {{'cancel', head}} or head
end

local answers = {{}}
local at = 2
for stream = 1, #KEYS, 2 do
  local count = tonumber(ARGV[at + 2])
  local chunk = at + 3
  local first = tonumber(ARGV[at + 1])
  answers[#answers + 1] = guarded(commit, KEYS[stream], KEYS[stream + 1], ARGV[at], first, chunk, chunk + count - 1)
  at = chunk + count
end
return answers
"""

FINISH = f"""{_GUARDED}
-- KEYS: hash, entries, and perhaps an idempotency key. ARGV: fence, tokens, the terminal event, its kind, ms that the
-- entries are kept, ms that the stream is remembered, whether its idempotency key is freed (1 or 0), and
-- "id fingerprint" that the key stands for, unless it is another's by now.
local function finish()
  local have = redis.call('HMGET', KEYS[1], 'fence', 'end', 'head', 'attached')
  local head, attached = whole(have[3]), whole(have[4]) or 0
  if not have[1] then return {{'missing'}} end
  if not held(have[1]) then return {{'damaged'}} end
  if have[1] ~= ARGV[1] then return {{'fenced', head or 0}} end
  if have[2] then return {{'ended', attached}} end
  if not head then return {{'damaged'}} end
  if head < tonumber(ARGV[2]) then return {{'behind', head}} end
  if head > tonumber(ARGV[2]) then return {{'damaged'}} end
  if head > 0 and redis.call('EXISTS', KEYS[2]) == 0 then return {{'missing'}} end
  redis.call('XADD', KEYS[2], (head + 1) .. '-0', 'e', ARGV[3])
  redis.call('HSET', KEYS[1], 'end', ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  return {{'done', attached}}
end

local answer = guarded(finish)
if answer[1] == 'done' and KEYS[3] and guarded(redis.call, 'GET', KEYS[3]) == ARGV[8] then
  if ARGV[7] == '1' then redis.call('DEL', KEYS[3]) else redis.call('PEXPIRE', KEYS[3], ARGV[6]) end
end
return answer
"""

RESTORE = f"""{_GUARDED}
-- What the engine lost, or what is damaged, is begun anew by who holds it. KEYS: hash, entries, and perhaps an
-- idempotency key. ARGV: fence, ms to live, "id fingerprint", then the hash's fields and values. Answers 1, or 0 when
-- it is another's.
local fence = guarded(redis.call, 'HGET', KEYS[1], 'fence')
if type(fence) == 'string' and held(fence) and fence ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if KEYS[3] then redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[2], 'NX') end
return 1
"""

CANCEL = f"""{_GUARDED}
-- KEYS: hash, its producer's wake key, the stops that it is asked for. ARGV: owner, stream id, ms that these keys live.
-- Answers 1 when it lives. The message is heard at once, and may be pushed out by others; what is a member stays one.
local have = redis.call('HMGET', KEYS[1], 'owner', 'end')
if have[1] ~= ARGV[1] or have[2] then return 0 end
redis.call('HSET', KEYS[1], 'cancel', '1')
leave('SADD', KEYS[3], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
leave('XADD', KEYS[2], 'MAXLEN', '100', '*', 'cancel', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""

ATTACH = f"""{_GUARDED}
-- Notes that somebody begins to read a stream that goes on. KEYS: hash. Answers how many that makes, else 0.
local function attach()
  local have = redis.call('HMGET', KEYS[1], 'fence', 'end')
  if not have[1] or have[2] then return 0 end
  return redis.call('HINCRBY', KEYS[1], 'attached', 1)
end
local answer = guarded(attach)
return type(answer) == 'number' and answer or 0
"""

ADOPT = f"""{_GUARDED}
-- A stream whose producer is gone becomes another's, once. KEYS: hash, the producer's sign of life.
-- ARGV: producer, its fence, the new owner. Answers the head, or -1 when there is nothing to adopt.
local function adopt()
  local have = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'end', 'head')
  if have[1] ~= ARGV[1] or have[2] ~= ARGV[2] or have[3] or redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
  if not held(have[2]) or not whole(have[4]) then return -1 end
  redis.call('HSET', KEYS[1], 'owner', ARGV[3], 'fence', string.format('%d', tonumber(ARGV[2]) + 1))
  return tonumber(have[4])
end
local answer = guarded(adopt)
return type(answer) == 'number' and answer or -1
"""

WAKE = f"""{_GUARDED}
-- Leaves a message for a worker. KEYS: its wake key. ARGV: what, of which streams, ms that the key lives.
leave('XADD', KEYS[1], 'MAXLEN', '100', '*', ARGV[1], ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
"""
