-- Find a key that is damaged because another program has written to it.
local problem = ''
local function check(key, kind, value, pattern)
  local found = redis.call('TYPE', key)['ok']
  if found == 'none' then return end
  if found ~= kind then
    problem = key .. ' has the type ' .. found .. ' instead of ' .. kind
  elseif pattern then
    value = value or redis.call('GET', key)
    if not string.match(value, pattern) then problem = key .. ' has the value ' .. string.sub(value, 1, 40) end
  end
end
