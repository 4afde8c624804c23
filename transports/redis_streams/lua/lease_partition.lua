-- Lease a partition. Create a new consumer group that begins with the oldest record in the stream. All records there
-- are unacked, because acked records are deleted. Remove the previous group, so that its holder can neither read nor
-- ack. Return the epoch, and the last record that may have been delivered. The epoch is 0 if another consumer has the
-- lease.
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
