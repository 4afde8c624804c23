-- Return the oldest records of all partitions. Each has the partition, whether it was delivered, the id and the fields.
local heads, upto, found = {}, {}, {}
local function move_on(at, from)
  heads[at] = redis.call('XRANGE', KEYS[at], from, '+', 'COUNT', 1)[1]
end
for at = 1, #KEYS, 3 do
  move_on(at, '-')
  upto[at] = delivered_upto(KEYS[at], KEYS[at + 1], KEYS[at + 2])
end
while #found < tonumber(ARGV[1]) do
  local oldest
  for at, head in pairs(heads) do
    if not oldest or is_after(heads[oldest][1], head[1]) then oldest = at end
  end
  if not oldest then break end
  local id, fields = heads[oldest][1], heads[oldest][2]
  local delivered = not is_after(id, upto[oldest]) or redis.call('XPENDING', KEYS[oldest], 'c', id, id, 1)[1]
  found[#found + 1] = {(oldest - 1) / 3, delivered and 1 or 0, id, fields}
  move_on(oldest, '(' .. id)
end
return found
