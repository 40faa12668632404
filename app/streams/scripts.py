"""What the engine does in one step each: Lua, so that a look and the write that depends on it cannot be torn apart.

A stream is a hash and, once it has a chunk, a stream key with an entry for each chunk, `<sequence>-0`, and one for
its end, `<tokens + 1>-0`. The hash says whose it is: only who holds its `fence` writes. Every key has a time to
live from its first command.

Answers of `COMMIT` and `FINISH`, for each stream: a number when all is well (the head), else a list:
`missing` (or a part of it is), `ended` by the same writer, and with the head that there is `fenced`, `behind`, or
`cancel`: all is well, and somebody has asked for its end.
"""

from __future__ import annotations

__all__ = ["ADOPT", "CANCEL", "COMMIT", "CREATE", "FINISH", "RESTORE", "WAKE"]

CREATE = """
-- KEYS: hash, and perhaps an idempotency key. ARGV: may it be made (1 or 0), ms to live, "id fingerprint",
-- then the hash's fields and values. Answers 1 (made), 0 (may not), or "id fingerprint" that the key stands for.
if KEYS[2] then
  local bound = redis.call('GET', KEYS[2])
  if bound then return bound end
end
if ARGV[1] == '0' then return 0 end
if KEYS[2] then redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2]) end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

COMMIT = """
-- KEYS: hash and entries of each stream. ARGV: ms to live, then for each stream: fence, the sequence number of its
-- first chunk, how many chunks (0: only look), the chunks. A chunk that is there already is passed over.
local answers = {}
local at = 2
for stream = 1, #KEYS, 2 do
  local hash, entries = KEYS[stream], KEYS[stream + 1]
  local fence, first, count = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local chunk = at + 3
  at = chunk + count
  local have = redis.call('HMGET', hash, 'fence', 'end', 'head', 'bytes', 'cancel')
  local head = tonumber(have[3])
  local answer
  if not have[1] then
    answer = {'missing'}
  elseif have[1] ~= fence then
    answer = {'fenced', head}
  elseif have[2] then
    answer = {'ended'}
  elseif first > head + 1 then
    answer = {'behind', head}
  elseif head > 0 and first + count == head + 1 and redis.call('EXISTS', entries) == 0 then
    answer = {'missing'}
  else
    local known, bytes = head, tonumber(have[4])
    for i = chunk + head + 1 - first, at - 1 do
      if head == 0 then
        redis.call('XADD', entries, '1-0', 't', ARGV[i])
        redis.call('PEXPIRE', entries, ARGV[1])
      elseif not redis.call('XADD', entries, 'NOMKSTREAM', (head + 1) .. '-0', 't', ARGV[i]) then
        answer = {'missing'}
        break
      end
      head = head + 1
      bytes = bytes + #ARGV[i]
    end
    if head > known then redis.call('HSET', hash, 'head', head, 'bytes', bytes) end
    answer = answer or have[5] and {'cancel', head} or head
  end
  answers[#answers + 1] = answer
end
return answers
"""

FINISH = """
-- KEYS: hash, entries, and perhaps an idempotency key. ARGV: fence, tokens, the terminal event, its kind, ms that the
-- entries are kept, ms that the stream is remembered, whether its idempotency key is freed (1 or 0), and
-- "id fingerprint" that the key stands for, unless it is another's by now.
local have = redis.call('HMGET', KEYS[1], 'fence', 'end', 'head')
local head = tonumber(have[3])
if not have[1] then return {'missing'} end
if have[1] ~= ARGV[1] then return {'fenced', head} end
if have[2] then return {'ended'} end
if head < tonumber(ARGV[2]) then return {'behind', head} end
if head > 0 and redis.call('EXISTS', KEYS[2]) == 0 then return {'missing'} end
redis.call('XADD', KEYS[2], (head + 1) .. '-0', 'e', ARGV[3])
redis.call('HSET', KEYS[1], 'end', ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
if KEYS[3] and redis.call('GET', KEYS[3]) == ARGV[8] then
  if ARGV[7] == '1' then redis.call('DEL', KEYS[3]) else redis.call('PEXPIRE', KEYS[3], ARGV[6]) end
end
return head
"""

RESTORE = """
-- What the engine lost is begun anew by who holds it. KEYS: hash, entries, and perhaps an idempotency key.
-- ARGV: fence, ms to live, "id fingerprint", then the hash's fields and values. Answers 1, or 0 when it is another's.
local fence = redis.call('HGET', KEYS[1], 'fence')
if fence and fence ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if KEYS[3] then redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[2], 'NX') end
return 1
"""

CANCEL = """
-- KEYS: hash, its producer's wake key. ARGV: owner, stream id, ms that the wake key lives. Answers 1 when it lives.
local have = redis.call('HMGET', KEYS[1], 'owner', 'end')
if have[1] ~= ARGV[1] or have[2] then return 0 end
redis.call('HSET', KEYS[1], 'cancel', '1')
redis.call('XADD', KEYS[2], 'MAXLEN', '100', '*', 'cancel', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""

ADOPT = """
-- A stream whose producer is gone becomes another's, once. KEYS: hash, the producer's sign of life.
-- ARGV: producer, its fence, the new owner. Answers the head, or -1 when there is nothing to adopt.
local have = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'end', 'head')
if have[1] ~= ARGV[1] or have[2] ~= ARGV[2] or have[3] or redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
redis.call('HSET', KEYS[1], 'owner', ARGV[3], 'fence', tonumber(ARGV[2]) + 1)
return tonumber(have[4])
"""

WAKE = """
-- Leaves a message for a worker. KEYS: its wake key. ARGV: what, of which streams, ms that the key lives.
redis.call('XADD', KEYS[1], 'MAXLEN', '100', '*', ARGV[1], ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
"""
