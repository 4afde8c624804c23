-- End a consumer of single records.
return redis.call('DEL', KEYS[1])
