-- Create the queue if it does not exist. Return the number of partitions and a problem. The problem is empty, or names
-- the key that is damaged because another program has written to it.
local queue, prefix = KEYS[1], ARGV[2]
check(queue, 'hash')
check(prefix .. ':totals', 'hash')
check(prefix .. ':dead', 'stream')
if problem ~= '' then return {0, problem} end
redis.call('HSETNX', queue, 'partitions', ARGV[1])
for _, count in ipairs({'records', 'bytes', 'redeliveries'}) do
  local value = redis.call('HGET', prefix .. ':totals', count)
  if value then check(prefix .. ':totals', 'hash', value, '^%-?%d+$') end
end
local partitions = redis.call('HGET', queue, 'partitions')
if not string.match(partitions, '^%d%d?%d?%d?$') or tonumber(partitions) < 1 or tonumber(partitions) > 4096 then
  return {0, queue .. ' has the value ' .. string.sub(partitions, 1, 40)}
end
for index = 0, tonumber(partitions) - 1 do
  local stream = prefix .. ':p' .. index
  check(stream, 'stream')
  check(stream .. ':lease', 'string')
  check(stream .. ':epoch', 'string', nil, '^%d+$')
  check(stream .. ':delivered', 'string', nil, '^%d+%-%d+$')
  redis.pcall('XGROUP', 'CREATE', stream, 'c', '0', 'MKSTREAM')
end
return {tonumber(partitions), problem}
