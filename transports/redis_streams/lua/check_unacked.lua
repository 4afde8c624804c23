-- Return whether this consumer still leases a record. If there is a reason, also copy the record to the dead letters.
-- The caller then acks the record in another call.
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
