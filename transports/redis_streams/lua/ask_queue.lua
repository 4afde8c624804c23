-- Return the number of partitions (0 if there is no queue) and a problem. The problem is empty, or names the key that is
-- damaged because another program has written to it. Nothing is created or changed: SET with XX writes only to a key
-- that exists, and KEYS[2] does not exist. But a server that refuses writes now refuses this one, too.
local queue, prefix = KEYS[1], ARGV[1]
redis.call('SET', KEYS[2], '', 'XX')
check(queue, 'hash')
check(prefix .. ':totals', 'hash')
check(prefix .. ':dead', 'stream')
if problem ~= '' then return {0, problem} end
local partitions = redis.call('HGET', queue, 'partitions')
if not partitions then return {0, ''} end
if not string.match(partitions, '^%d%d?%d?%d?$') or tonumber(partitions) < 1 or tonumber(partitions) > 4096 then
  return {0, queue .. ' has the value ' .. string.sub(partitions, 1, 40)}
end
for index = 0, tonumber(partitions) - 1 do check(prefix .. ':p' .. index, 'stream') end
return {tonumber(partitions), problem}
