-- Counts a stretch of the stream, channel by channel.
-- ARGV: from, to (both as XRANGE has them), how many entries at most, bytes counted beside a payload.
-- Returns the id to go on behind ('' at the end), the entries that are not ours, then of each channel
-- name, events, bytes.
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
local names, events, bytes, foreign = {}, {}, {}, 0
for _, entry in ipairs(entries) do
  local fields = entry[2]
  local channel
  local ours = #fields == 4 and fields[1] == 'h' and fields[3] == 'p'
  if ours and string.find(entry[1], '%-0$') then
    channel = string.match(fields[2], '^1 [rs] %-?%d+ (%S+)$')
  end
  if channel then
    if not events[channel] then
      names[#names + 1] = channel
      events[channel], bytes[channel] = 0, 0
    end
    events[channel] = events[channel] + 1
    bytes[channel] = bytes[channel] + #fields[4] + tonumber(ARGV[4])
  else
    foreign = foreign + 1
  end
end
local last = ''
if #entries == tonumber(ARGV[3]) then last = entries[#entries][1] end
local all = {last, foreign}
for _, name in ipairs(names) do
  all[#all + 1] = name
  all[#all + 1] = string.format('%.0f', events[name])
  all[#all + 1] = string.format('%.0f', bytes[name])
end
return all
