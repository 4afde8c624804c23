-- Add to the number of redeliveries.
redis.call('PERSIST', KEYS[1])
return redis.call('HINCRBY', KEYS[1], 'redeliveries', ARGV[1])
