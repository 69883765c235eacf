-- Adds the events of some requests, all or none.
-- ARGV: run, last seq before them, their first, their last, longest payload, number of channels,
-- then of each channel name, events, bytes; then of each request its header, the number of its
-- events, and their payloads.
local stream, counts = KEYS[1], KEYS[3]
local told = redis.call('HMGET', counts, 'run', 'last', 'biggest')
if not told[1] then return {'gone'} end
if told[1] ~= ARGV[1] then return {'stranger', told[1]} end
-- an answer was lost, and this is sent again
if tonumber(told[2]) >= tonumber(ARGV[4]) then return {'there'} end
if told[2] ~= ARGV[2] then return {'chain', told[2]} end
if redis.call('EXISTS', stream) == 0 then return {'gone'} end

local call, format = redis.call, string.format
local channels = tonumber(ARGV[6])
local seq = tonumber(ARGV[3])
local at = 7 + 3 * channels
local first = true
while at < #ARGV do
  local head, n = ARGV[at], tonumber(ARGV[at + 1])
  for i = at + 2, at + 1 + n do
    local id = format('%.0f-0', seq)
    if first then
      -- what refuses the first refuses all: nothing was written
      local added = redis.pcall('XADD', stream, id, 'h', head, 'p', ARGV[i])
      if type(added) == 'table' and added.err then
        local info = call('XINFO', 'STREAM', stream)
        for k = 1, #info - 1, 2 do
          if info[k] == 'last-generated-id' then
            local top = tonumber(string.match(info[k + 1], '^%d+'))
            if top >= seq then return {'above', info[k + 1]} end
          end
        end
        return added
      end
      first = false
    else
      call('XADD', stream, id, 'h', head, 'p', ARGV[i])
    end
    seq = seq + 1
  end
  at = at + 2 + n
end

local events, bytes = 0, 0
for k = 7, 6 + 3 * channels, 3 do
  call('HINCRBY', counts, 'n:' .. ARGV[k], ARGV[k + 1])
  call('HINCRBY', counts, 'b:' .. ARGV[k], ARGV[k + 2])
  events = events + tonumber(ARGV[k + 1])
  bytes = bytes + tonumber(ARGV[k + 2])
end
call('HINCRBY', counts, 'total', format('%.0f', events))
call('HINCRBY', counts, 'bytes', format('%.0f', bytes))
if tonumber(ARGV[5]) > tonumber(told[3] or '0') then
  call('HSET', counts, 'last', ARGV[4], 'biggest', ARGV[5])
else
  call('HSET', counts, 'last', ARGV[4])
end
return {'added'}
