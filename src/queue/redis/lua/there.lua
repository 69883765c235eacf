-- Which of some entries there are. ARGV: their first seqs. Returns those that are there.
local there = {}
for i = 1, #ARGV do
  local id = ARGV[i] .. '-0'
  if redis.call('XRANGE', KEYS[1], id, id)[1] then there[#there + 1] = ARGV[i] end
end
return there
