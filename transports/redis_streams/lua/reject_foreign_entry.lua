-- Turn an entry that another program wrote into a dead letter. The totals have never counted this entry. Do nothing if
-- the entry was removed before.
local stream, dead, group, id = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if #redis.call('XRANGE', stream, id, id) == 0 then return 0 end
redis.call('XADD', dead, '*', 'r', ARGV[3], 'k', ARGV[4], 't', ARGV[5], 'd', ARGV[6])
redis.call('XACK', stream, group, id)
return redis.call('XDEL', stream, id)
