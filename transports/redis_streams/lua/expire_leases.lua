-- End all leases of a dead handle in a partition: the lease on the partition, or those on single records.
local stream, lease, holder, prefix = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if redis.call('GET', lease) == holder then redis.call('DEL', lease) end
for _, owner in ipairs(redis.call('XPENDING', stream, 'c')[4] or {}) do
  if string.sub(owner[1], 1, #holder + 1) == holder .. '.' then redis.call('DEL', prefix .. owner[1]) end
end
