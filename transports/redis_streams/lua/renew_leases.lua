-- Renew all leases of a handle. Do not renew a lease that has expired.
for at = 1, #KEYS do
  if redis.call('GET', KEYS[at]) == ARGV[at + 1] then redis.call('PEXPIRE', KEYS[at], ARGV[1]) end
end
