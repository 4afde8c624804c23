-- Give a record to a consumer name that nobody uses, so that the next consumer takes it.
return redis.call('XCLAIM', KEYS[1], 'c', 'returned', 0, ARGV[1], 'JUSTID')
