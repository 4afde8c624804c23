-- Return a record that this consumer gave back with a delay, and count the redelivery.
redis.call('PERSIST', KEYS[2])
redis.call('HINCRBY', KEYS[2], 'redeliveries', 1)
return redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
