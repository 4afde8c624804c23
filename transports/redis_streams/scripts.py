"""What happens atomically inside the Redis server. Each script is one statement of the contract.

Every key of a queue begins with `{stream}`, so that a cluster keeps them together:

    :queue         how many partitions there are
    :p<i>          the records of a partition, a stream; its consumer group is `e<epoch>`, or `c` for single records
    :p<i>:epoch    how often the partition was leased or given back; the consumer that leased it last is its holder
    :p<i>:lease    exists while that holder lives
    :p<i>:delivered  the last record that a holder had delivered when it gave the partition back
    :holder:<i>:…  exists while a consumer of single records of that partition lives
    :writer:<id>   the last record of a producer, so that a put repeated after a lost answer is stored once
    :totals        records, bytes and redeliveries, kept exact by every script that changes them
    :dead          rejected records, a stream

A server that is out of memory refuses a script if its first write may take memory. Consuming frees memory, so the
scripts for it begin with a write that takes none (PERSIST); the server then allows the writes after it.
"""

# Create the queue if there is none yet. Answers how many partitions it has, and what is wrong with its keys if another
# program has written to them.
CREATE_QUEUE = """
local problem = ''
local function check(key, kind, value, pattern)
  local found = redis.call('TYPE', key)['ok']
  if found == 'none' then return end
  if found ~= kind then
    problem = key .. ' is of the type ' .. found .. ' instead of ' .. kind
  elseif pattern then
    value = value or redis.call('GET', key)
    if not string.match(value, pattern) then problem = key .. ' holds the value ' .. string.sub(value, 1, 40) end
  end
end
local queue, prefix = KEYS[1], ARGV[2]
check(queue, 'hash')
check(prefix .. ':totals', 'hash')
check(prefix .. ':dead', 'stream')
if problem ~= '' then return {0, problem} end
redis.call('HSETNX', queue, 'partitions', ARGV[1])
for _, count in ipairs({'records', 'bytes', 'redeliveries'}) do
  local value = redis.call('HGET', prefix .. ':totals', count)
  if value then check(prefix .. ':totals', 'hash', value, '^%-?%d+$') end
end
local partitions = redis.call('HGET', queue, 'partitions')
if not string.match(partitions, '^%d%d?%d?%d?$') or tonumber(partitions) < 1 or tonumber(partitions) > 4096 then
  return {0, queue .. ' holds the value ' .. string.sub(partitions, 1, 40)}
end
for index = 0, tonumber(partitions) - 1 do
  local stream = prefix .. ':p' .. index
  check(stream, 'stream')
  check(stream .. ':lease', 'string')
  check(stream .. ':epoch', 'string', nil, '^%d+$')
  check(stream .. ':delivered', 'string', nil, '^%d+%-%d+$')
  redis.pcall('XGROUP', 'CREATE', stream, 'c', '0', 'MKSTREAM')
end
return {tonumber(partitions), problem}
"""

# Runs after the XADD of a record, in one transaction: removes the record if it repeats a stored put or exceeds the
# limit, and otherwise counts it. So the record itself need not pass through a script.
ACCOUNT_PUT = """
local stream, totals, writer = KEYS[1], KEYS[2], KEYS[3]
local number, nbytes, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local repeated = redis.call('GET', writer) == number
local records = tonumber(redis.call('HGET', totals, 'records') or '0')
local bytes = tonumber(redis.call('HGET', totals, 'bytes') or '0')
if repeated or bytes + nbytes > limit then
  local added = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1][1]
  redis.call('XDEL', stream, added)
  return {repeated and 1 or 0, records, bytes}
end
redis.call('HINCRBY', totals, 'records', 1)
redis.call('HINCRBY', totals, 'bytes', nbytes)
redis.call('SET', writer, number, 'EX', 86400)
return {1, 0, 0}
"""

# The last record of a partition that was delivered or may have been delivered: what its last holders recorded, or what
# was read by a holder that may have died.
_DELIVERED_FUNCTIONS = """
local function is_after(a, b)
  local a_ms, a_number = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_number = string.match(b, '(%d+)-(%d+)')
  return tonumber(a_ms) > tonumber(b_ms) or a_ms == b_ms and tonumber(a_number) > tonumber(b_number)
end
local function delivered_upto(stream, epoch, delivered)
  local upto = redis.call('GET', delivered) or '0-0'
  local name = 'e' .. (redis.call('GET', epoch) or '0')
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local entry = {}
    for at = 1, #group, 2 do entry[group[at]] = group[at + 1] end
    if entry['name'] == name and is_after(entry['last-delivered-id'], upto) then upto = entry['last-delivered-id'] end
  end
  return upto
end
"""

# Lease a partition: create a new consumer group, which begins with the oldest record (acked records are deleted), and
# remove the previous group, so that its holder can neither read nor ack. Answers the epoch, which is 0 if another
# consumer holds the partition, and the last record that may have been delivered.
LEASE_PARTITION = (
    _DELIVERED_FUNCTIONS
    + """
local stream, lease, epoch, delivered = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if redis.call('EXISTS', lease) == 1 then return {0, ''} end
redis.call('PERSIST', epoch)
local before = redis.call('GET', epoch) or '0'
local upto = delivered_upto(stream, epoch, delivered)
local mine = redis.call('INCR', epoch)
redis.call('XGROUP', 'DESTROY', stream, 'e' .. before)
redis.call('XGROUP', 'CREATE', stream, 'e' .. mine, '0')
redis.call('SET', delivered, upto)
redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
return {mine, upto}
"""
)

# Give a partition back, and record which record was really delivered last.
RELEASE_PARTITION = """
local stream, lease, epoch, delivered = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if redis.call('GET', epoch) ~= ARGV[1] then return end
redis.call('DEL', lease)
redis.call('XGROUP', 'DESTROY', stream, 'e' .. ARGV[1])
redis.call('INCR', epoch)
redis.call('SET', delivered, ARGV[2])
"""

# The next record for a consumer of single records: one that it has and does not know of (the answer was lost), one
# whose consumer is dead, or else a new one.
TAKE_RECORD = """
local stream, totals, prefix = KEYS[1], KEYS[2], ARGV[3]
local holder, lease_ms = ARGV[1], ARGV[2]
redis.call('PERSIST', totals)
redis.call('SET', prefix .. holder, holder, 'PX', lease_ms)
local known = {}
for at = 4, #ARGV do known[ARGV[at]] = true end
for _, pending in ipairs(redis.call('XPENDING', stream, 'c', '-', '+', #ARGV, holder)) do
  local found = not known[pending[1]] and redis.call('XRANGE', stream, pending[1], pending[1])[1]
  if found then return {{pending[1], pending[4] - 1, found[2]}} end
end
for _, owner in ipairs(redis.call('XPENDING', stream, 'c')[4] or {}) do
  if redis.call('EXISTS', prefix .. owner[1]) == 0 then
    local pending = redis.call('XPENDING', stream, 'c', '-', '+', 1, owner[1])[1]
    local got = redis.call('XCLAIM', stream, 'c', holder, 0, pending[1], 'RETRYCOUNT', pending[4] + 1)
    if got[1] then
      redis.call('HINCRBY', totals, 'redeliveries', 1)
      return {{pending[1], pending[4], got[1][2]}}
    end
    redis.call('XACK', stream, 'c', pending[1])  -- another program deleted it
  end
end
local got = redis.call('XREADGROUP', 'GROUP', 'c', holder, 'COUNT', 1, 'STREAMS', stream, '>')
if not got then return {} end
return {{got[1][2][1][1], 0, got[1][2][1][2]}}
"""

# Ack records, delete them, and update the totals; answers the ids that this consumer no longer has. `guard` is the
# epoch of the partition, or the name of a consumer of single records. A record that is not pending was settled before.
ACK = """
local stream, epoch, totals, by_epoch, guard = KEYS[1], KEYS[2], KEYS[3], ARGV[1] == 'partition', ARGV[2]
local group = by_epoch and 'e' .. guard or 'c'
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
  elseif redis.call('XACK', stream, group, id) == 1 then
    redis.call('XDEL', stream, id)
    redis.call('HINCRBY', totals, 'records', -1)
    redis.call('HINCRBY', totals, 'bytes', 0 - tonumber(ARGV[at + 1]))
  end
end
return stale
"""

# Whether this consumer still has a record; with a reason, the record is copied to the dead letters. The ack is another
# call.
CHECK_UNACKED = """
local stream, epoch, dead = KEYS[1], KEYS[2], KEYS[3]
local by_epoch, guard, id, reason = ARGV[1] == 'partition', ARGV[2], ARGV[3], ARGV[4]
if by_epoch and redis.call('GET', epoch) ~= guard then return 0 end
local pending = redis.call('XPENDING', stream, by_epoch and 'e' .. guard or 'c', id, id, 1)[1]
if not pending then return 0 end
if not by_epoch and pending[2] ~= guard then return 0 end
if reason then
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if not entry then return 0 end
  redis.call('XADD', dead, '*', 'r', reason, unpack(entry[2]))
end
return 1
"""

# Make an entry that is no record of ours a dead letter; nothing happens if it is gone already. The totals never counted
# it.
REJECT_FOREIGN_ENTRY = """
local stream, dead, group, id = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if #redis.call('XRANGE', stream, id, id) == 0 then return 0 end
redis.call('XADD', dead, '*', 'r', ARGV[3], 'k', ARGV[4], 't', ARGV[5], 'd', ARGV[6])
redis.call('XACK', stream, group, id)
return redis.call('XDEL', stream, id)
"""

# Deliver a record again that this consumer gave back with a delay.
REDELIVER = """
redis.call('PERSIST', KEYS[2])
redis.call('HINCRBY', KEYS[2], 'redeliveries', 1)
return redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
"""

COUNT_REDELIVERIES = """
redis.call('PERSIST', KEYS[1])
return redis.call('HINCRBY', KEYS[1], 'redeliveries', ARGV[1])
"""

# Give a record to a consumer that never lives, so that the next consumer that asks gets it.
NACK = """
return redis.call('XCLAIM', KEYS[1], 'c', 'returned', 0, ARGV[1], 'JUSTID')
"""

# End a consumer of single records.
END_CONSUMER = """
return redis.call('DEL', KEYS[1])
"""

# Free everything that a dead handle has leased: the whole partition, or single records.
EXPIRE_LEASES = """
local stream, lease, holder, prefix = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if redis.call('GET', lease) == holder then redis.call('DEL', lease) end
for _, owner in ipairs(redis.call('XPENDING', stream, 'c')[4] or {}) do
  if string.sub(owner[1], 1, #holder + 1) == holder .. '.' then redis.call('DEL', prefix .. owner[1]) end
end
"""

# Renew all leases of a handle, however many records are pending. A lease that has expired stays expired.
RENEW_LEASES = """
for at = 1, #KEYS do
  if redis.call('GET', KEYS[at]) == ARGV[at + 1] then redis.call('PEXPIRE', KEYS[at], ARGV[1]) end
end
"""

DEAD_LETTERS = """
return redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])
"""

# Remove a dead letter.
DISCARD_DEAD_LETTER = """
return redis.call('XDEL', KEYS[1], ARGV[1])
"""

# The oldest records of all partitions: for each its partition, whether it was delivered, its id and its fields.
PEEK = (
    _DELIVERED_FUNCTIONS
    + """
local heads, upto, found = {}, {}, {}
local function move_on(at, from)
  heads[at] = redis.call('XRANGE', KEYS[at], from, '+', 'COUNT', 1)[1]
end
for at = 1, #KEYS, 3 do
  move_on(at, '-')
  upto[at] = delivered_upto(KEYS[at], KEYS[at + 1], KEYS[at + 2])
end
while #found < tonumber(ARGV[1]) do
  local oldest
  for at, head in pairs(heads) do
    if not oldest or is_after(heads[oldest][1], head[1]) then oldest = at end
  end
  if not oldest then break end
  local id, fields = heads[oldest][1], heads[oldest][2]
  local delivered = not is_after(id, upto[oldest]) or redis.call('XPENDING', KEYS[oldest], 'c', id, id, 1)[1]
  found[#found + 1] = {(oldest - 1) / 3, delivered and 1 or 0, id, fields}
  move_on(oldest, '(' .. id)
end
return found
"""
)

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
