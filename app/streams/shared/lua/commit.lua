-- Adds records to many streams. A record that is there already is passed over, so sending twice is idempotent.
-- KEYS: hash and entries of each stream.
-- ARGV: ms to live, then for each stream: its fence, the name of a record's field, the sequence number of its first
-- record, how many records (0: only look), the records.
-- Answers for each stream a number, the head, when all is well. Else a list: `erased` (for good), `missing` (the stream,
-- or a part of it),
-- `ended` (by the same writer), `damaged` (what is there is none of this program's); with the head, `fenced` (another
-- worker writes it), `behind` (records between are missing), or `cancel` (all is well, and its end is asked for).
local function commit(hash, entries, fence, field, first, record, last)
  local have = redis.call('HMGET', hash, 'fence', 'end', 'head', 'bytes', 'cancel')
  local head, bytes = whole(have[3]), whole(have[4])
  if not have[1] then return lost(hash) end
  if not held(have[1]) then return {'damaged'} end
  if have[1] ~= fence then return {'fenced', head or 0} end
  if have[2] then return {'ended'} end
  if not head or not bytes then return {'damaged'} end
  if first > head + 1 then return {'behind', head} end
  if head > 0 and first + last - record == head and redis.call('EXISTS', entries) == 0 then return {'missing'} end
  local known, answer = head, nil
  for i = record + head + 1 - first, last do
    if head == 0 then
      redis.call('XADD', entries, '1-0', field, ARGV[i])
      redis.call('PEXPIRE', entries, ARGV[1])
    elseif not redis.call('XADD', entries, 'NOMKSTREAM', (head + 1) .. '-0', field, ARGV[i]) then
      answer = {'missing'}
      break
    end
    head = head + 1
    bytes = bytes + #ARGV[i]
  end
  if head > known then redis.call('HSET', hash, 'head', head, 'bytes', bytes) end
  return answer or have[5] and {'cancel', head} or head
end

local answers = {}
local at = 2
for stream = 1, #KEYS, 2 do
  local count = tonumber(ARGV[at + 3])
  local record = at + 4
  local first, last = tonumber(ARGV[at + 2]), record + count - 1
  answers[#answers + 1] = guarded(commit, KEYS[stream], KEYS[stream + 1], ARGV[at], ARGV[at + 1], first, record, last)
  at = record + count
end
return answers
