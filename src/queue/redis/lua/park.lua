-- Gives entries to the consumer of a channel that is set aside; says which of them there are.
-- ARGV: run, group, consumer, then their first seqs.
local stream, counts = KEYS[1], KEYS[3]
local run = redis.call('HGET', counts, 'run')
if not run then return {'gone'} end
if run ~= ARGV[1] then return {'stranger', run} end
local there = {'parked'}
for i = 4, #ARGV, 1000 do
  local some = {stream, ARGV[2], ARGV[3], '0'}
  for k = i, math.min(i + 999, #ARGV) do
    local id = ARGV[k] .. '-0'
    if redis.call('XRANGE', stream, id, id)[1] then
      some[#some + 1] = id
      there[#there + 1] = ARGV[k]
    end
  end
  if #some > 4 then
    some[#some + 1] = 'FORCE'
    some[#some + 1] = 'JUSTID'
    redis.call('XCLAIM', unpack(some))
  end
end
return there
