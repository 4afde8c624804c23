"""What happens atomically inside the Redis server. Each script is one statement of the contract.

Every key of a queue begins with `{stream}`, so that a cluster keeps them together:

    :queue         how many partitions there are
    :p<i>          the records of a partition, a stream with the consumer group `c`
    :p<i>:epoch    how often the partition was leased; whoever took it last is its holder
    :p<i>:lease    exists while that holder lives
    :holder:<i>:…  exists while a consumer of single records of that partition lives
    :writer:<id>   the last record of a producer, so that a put repeated after a lost answer is stored once
    :totals        records, bytes and redeliveries, kept exact by every script that changes them
    :dead          rejected records, a stream

A server that is out of memory refuses a script's first command that may take memory. Consuming makes room, so the
scripts for it begin with a write that takes none (PERSIST); those that follow it are then let through.
"""

CREATE = """
redis.call('HSETNX', KEYS[1], 'partitions', ARGV[1])
local partitions = tonumber(redis.call('HGET', KEYS[1], 'partitions'))
for index = 0, partitions - 1 do
  redis.pcall('XGROUP', 'CREATE', ARGV[2] .. ':p' .. index, 'c', '0', 'MKSTREAM')
end
return partitions
"""

PUT = """
local stream, totals, writer = KEYS[1], KEYS[2], KEYS[3]
local number, nbytes, limit, key, tag, data = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]
if redis.call('GET', writer) == number then return {1, 0, 0} end
local records = tonumber(redis.call('HGET', totals, 'records') or '0')
local bytes = tonumber(redis.call('HGET', totals, 'bytes') or '0')
if bytes + nbytes > limit then return {0, records, bytes} end
redis.call('XADD', stream, '*', 'k', key, 't', tag, 'n', nbytes, 'd', data)
redis.call('HINCRBY', totals, 'records', 1)
redis.call('HINCRBY', totals, 'bytes', nbytes)
redis.call('SET', writer, number, 'EX', 86400)
return {1, 0, 0}
"""

# A consumer of the whole partition. Its first call leases it; records that predecessors had pending come first, from
# `cursor` on; new ones follow when the cursor is empty. Answers {epoch, cursor, {id, times delivered before, fields}…};
# epoch 0: another holds it, -1: another has taken it over.
TAKE_PARTITION = """
local stream, lease, epoch, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local holder, mine, lease_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local cursor, budget, consumer = ARGV[4], tonumber(ARGV[5]), ARGV[1]
redis.call('PERSIST', epoch)
if mine == 0 then
  if redis.call('EXISTS', lease) == 1 then return {0, ''} end
  mine = redis.call('INCR', epoch)
elseif mine ~= tonumber(redis.call('GET', epoch) or '0') then
  return {-1, ''}
end
redis.call('SET', lease, holder, 'PX', lease_ms)
local answer, bytes = {mine, cursor}, 0
while bytes < budget and #answer < 130 do
  if cursor ~= '' then
    local pending = redis.call('XPENDING', stream, 'c', cursor, '+', 1)
    if #pending == 0 then
      cursor = ''
    else
      local id, times = pending[1][1], pending[1][4]
      cursor = '(' .. id
      local got = redis.call('XCLAIM', stream, 'c', consumer, 0, id, 'RETRYCOUNT', times + 1)
      if got[1] then
        if times > 0 then redis.call('HINCRBY', totals, 'redeliveries', 1) end
        answer[#answer + 1] = {id, times, got[1][2]}
        bytes = bytes + string.len(got[1][2][8])
      end
    end
  else
    local got = redis.call('XREADGROUP', 'GROUP', 'c', consumer, 'COUNT', 1, 'STREAMS', stream, '>')
    if not got then break end
    local entry = got[1][2][1]
    answer[#answer + 1] = {entry[1], 0, entry[2]}
    bytes = bytes + string.len(entry[2][8])
  end
end
answer[2] = cursor
return answer
"""

# A consumer of single records: one that nobody alive has, or else a new one.
TAKE_RECORD = """
local stream, totals, prefix = KEYS[1], KEYS[2], ARGV[3]
local holder, lease_ms = ARGV[1], ARGV[2]
redis.call('PERSIST', totals)
redis.call('SET', prefix .. holder, holder, 'PX', lease_ms)
for _, owner in ipairs(redis.call('XPENDING', stream, 'c')[4] or {}) do
  if redis.call('EXISTS', prefix .. owner[1]) == 0 then
    local pending = redis.call('XPENDING', stream, 'c', '-', '+', 1, owner[1])[1]
    local got = redis.call('XCLAIM', stream, 'c', holder, 0, pending[1], 'RETRYCOUNT', pending[4] + 1)
    if got[1] then
      redis.call('HINCRBY', totals, 'redeliveries', 1)
      return {{pending[1], pending[4], got[1][2]}}
    end
  end
end
local got = redis.call('XREADGROUP', 'GROUP', 'c', holder, 'COUNT', 1, 'STREAMS', stream, '>')
if not got then return {} end
return {{got[1][2][1][1], 0, got[1][2][1][2]}}
"""

# Ack, then delete, and account for both; answers the ids that are not this consumer's any more. `guard` is the epoch
# of the partition, or the name of a consumer of single records. Those that nobody has pending were settled before.
SETTLE = """
local stream, epoch, totals, by_epoch, guard = KEYS[1], KEYS[2], KEYS[3], ARGV[1] == 'partition', ARGV[2]
redis.call('PERSIST', totals)
local held, stale = not by_epoch or redis.call('GET', epoch) == guard, {}
for at = 3, #ARGV, 2 do
  local id = ARGV[at]
  local mine = held
  if not by_epoch then
    local pending = redis.call('XPENDING', stream, 'c', id, id, 1)[1]
    mine = not pending or pending[2] == guard
  end
  if not mine then
    stale[#stale + 1] = id
  elseif redis.call('XACK', stream, 'c', id) == 1 then
    redis.call('XDEL', stream, id)
    redis.call('HINCRBY', totals, 'records', -1)
    redis.call('HINCRBY', totals, 'bytes', -tonumber(ARGV[at + 1]))
  end
end
return stale
"""

# Whether a record is still this consumer's; with a reason, it becomes a dead letter. Settling it is another call.
HOLD = """
local stream, epoch, dead = KEYS[1], KEYS[2], KEYS[3]
local by_epoch, guard, id, reason = ARGV[1] == 'partition', ARGV[2], ARGV[3], ARGV[4]
local pending = redis.call('XPENDING', stream, 'c', id, id, 1)[1]
if not pending then return 0 end
if by_epoch and redis.call('GET', epoch) ~= guard then return 0 end
if not by_epoch and pending[2] ~= guard then return 0 end
if reason then
  local fields = redis.call('XRANGE', stream, id, id)[1][2]
  redis.call('XADD', dead, '*', 'r', reason, unpack(fields))
end
return 1
"""

# Deliver a record again that this consumer had given back to itself for later.
AGAIN = """
redis.call('PERSIST', KEYS[2])
redis.call('HINCRBY', KEYS[2], 'redeliveries', 1)
return redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
"""

# Give a partition back: what was read ahead and never delivered counts as new for the next one.
RELEASE_PARTITION = """
local stream, lease, epoch = KEYS[1], KEYS[2], KEYS[3]
if redis.call('GET', epoch) ~= ARGV[1] then return end
redis.call('DEL', lease)
for at = 3, #ARGV do
  redis.call('XCLAIM', stream, 'c', ARGV[2], 0, ARGV[at], 'RETRYCOUNT', 0, 'JUSTID')
end
redis.call('INCR', epoch)
"""

# Pass a record to a consumer that never lives, so that the next who asks adopts it.
GIVE_BACK = """
return redis.call('XCLAIM', KEYS[1], 'c', 'returned', 0, ARGV[1], 'JUSTID')
"""

# A consumer of single records lives no longer.
FORGET = """
return redis.call('DEL', KEYS[1])
"""

# A handle is known to be dead: whatever it leased, of the whole partition or of single records, is free.
DISOWN = """
local stream, lease, holder, prefix = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if redis.call('GET', lease) == holder then redis.call('DEL', lease) end
for _, owner in ipairs(redis.call('XPENDING', stream, 'c')[4] or {}) do
  if string.sub(owner[1], 1, #holder + 1) == holder .. '.' then redis.call('DEL', prefix .. owner[1]) end
end
"""

# One renewal for everything that a handle has, however many records are pending. A lease that has expired stays so.
RENEW = """
for at = 1, #KEYS do
  if redis.call('GET', KEYS[at]) == ARGV[at + 1] then redis.call('PEXPIRE', KEYS[at], ARGV[1]) end
end
"""

DEAD = """
return redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])
"""

STATS = """
local totals, dead, oldest = KEYS[1], KEYS[2], false
for at = 3, #KEYS do
  local first = redis.call('XRANGE', KEYS[at], '-', '+', 'COUNT', 1)[1]
  if first then
    local put_ms = tonumber(string.match(first[1], '^%d+'))
    if not oldest or put_ms < oldest then oldest = put_ms end
  end
end
local now = redis.call('TIME')
local age = oldest and (tonumber(now[1]) * 1000 + tonumber(now[2]) / 1000 - oldest) or 0
local counts = redis.call('HMGET', totals, 'records', 'bytes', 'redeliveries')
return {counts[1] or 0, counts[2] or 0, counts[3] or 0, redis.call('XLEN', dead), math.max(math.ceil(age), 0)}
"""
