-- Release a partition, and store the id of the record that was delivered last.
local stream, lease, epoch, delivered = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if redis.call('GET', epoch) ~= ARGV[1] then return end
redis.call('DEL', lease)
redis.call('XGROUP', 'DESTROY', stream, 'e' .. ARGV[1])
redis.call('INCR', epoch)
redis.call('SET', delivered, ARGV[2])
