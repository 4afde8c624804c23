-- Functions for other scripts; their text is placed before those scripts.
-- delivered_upto returns the id of the last record of a partition that may have been delivered. That is the record
-- which the last holder stored at its release, or a later one that a dead holder has read.
local function is_after(a, b)
  local a_ms, a_number = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_number = string.match(b, '(%d+)-(%d+)')
  return tonumber(a_ms) > tonumber(b_ms) or a_ms == b_ms and tonumber(a_number) > tonumber(b_number)
end
local function delivered_upto(stream, epoch, delivered)
  local upto = redis.call('GET', delivered) or '0-0'
  local name = 'e' .. (redis.call('GET', epoch) or '0')
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local entry = {}
    for at = 1, #group, 2 do entry[group[at]] = group[at + 1] end
    if entry['name'] == name and is_after(entry['last-delivered-id'], upto) then upto = entry['last-delivered-id'] end
  end
  return upto
end
