-- Which of some events the stream has. ARGV: their seqs. Returns those that are there.
local there = {}
for i = 1, #ARGV do
  local entry = redis.call('XREVRANGE', KEYS[1], ARGV[i] .. '-0', '-', 'COUNT', 1)[1]
  local first = entry and string.match(entry[1], '^(%d+)%-0$')
  -- a header, and the payloads of events that follow each other
  if first and entry[2][1] == 'h' and tonumber(ARGV[i]) < tonumber(first) + #entry[2] / 2 - 1 then
    there[#there + 1] = ARGV[i]
  end
end
return there
