-- Counts a stretch of the stream, channel by channel.
-- ARGV: from, to (both as XRANGE has them), how many entries at most, bytes counted beside a payload.
-- Returns the id to go on behind ('' at the end), the entries that are ours, then of each channel
-- name, events, bytes.
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
local names, events, bytes, ours = {}, {}, {}, 0
local beside = tonumber(ARGV[4])
local function channel_of(entry)
  local fields = entry[2]
  if #fields < 4 or fields[1] ~= 'h' or not string.find(entry[1], '%-0$') then return nil end
  for k = 3, #fields, 2 do
    if fields[k] ~= 'p' then return nil end
  end
  return string.match(fields[2], '^1 [rs] %-?%d+ (%S+)$')
end
for _, entry in ipairs(entries) do
  local channel = channel_of(entry)
  if channel then
    if not events[channel] then
      names[#names + 1] = channel
      events[channel], bytes[channel] = 0, 0
    end
    local fields, size = entry[2], 0
    for k = 4, #fields, 2 do size = size + #fields[k] + beside end
    events[channel] = events[channel] + #fields / 2 - 1
    bytes[channel] = bytes[channel] + size
    ours = ours + 1
  end
end
local last = ''
if #entries == tonumber(ARGV[3]) then last = entries[#entries][1] end
local all = {last, ours}
for _, name in ipairs(names) do
  all[#all + 1] = name
  all[#all + 1] = string.format('%d', events[name])
  all[#all + 1] = string.format('%d', bytes[name])
end
return all
