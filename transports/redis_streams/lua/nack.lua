-- Give a record to a consumer that never lives, so that the next consumer gets it.
return redis.call('XCLAIM', KEYS[1], 'c', 'returned', 0, ARGV[1], 'JUSTID')
