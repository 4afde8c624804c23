-- Return the oldest dead letters.
return redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])
