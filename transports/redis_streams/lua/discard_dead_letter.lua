-- Remove a dead letter.
return redis.call('XDEL', KEYS[1], ARGV[1])
