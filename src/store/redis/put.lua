-- Writes a record if the expectation holds.
-- KEYS: records, versions, ends, last version.
-- ARGV: key, value, end, expectation ('any', 'absent' or a version), now, how many ended records to sweep.
-- A record is 'VERSION:END:' and the value, both numbers in decimal.
-- Gives {1, version}, or {0, what stands there instead or nil}.
local records, versions, ends, last = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local key, now = ARGV[1], tonumber(ARGV[5])

local found = redis.call('HGET', records, key)
local version, finish
if found then
    version, finish = string.match(found, '^(%d+):(%-?%d+):')
    if tonumber(finish) <= now then found = false end
end
local expect = ARGV[4]
local fits = true
if expect == 'absent' then
    fits = not found
elseif expect ~= 'any' then
    fits = found and version == expect
end
if not fits then return {0, found} end

-- The server's clock as the floor: a replica that takes over without the last writes gives out no version twice.
local time = redis.call('TIME')
local floor = tonumber(time[1]) * 1000000 + tonumber(time[2])
local given = tonumber(redis.call('GET', last) or '0') + 1
if given < floor then given = floor end
given = string.format('%.0f', given)
redis.call('SET', last, given)

if tonumber(ARGV[3]) <= now then
    redis.call('HDEL', records, key)
    redis.call('ZREM', versions, key)
    redis.call('ZREM', ends, key)
else
    redis.call('HSET', records, key, given .. ':' .. ARGV[3] .. ':' .. ARGV[2])
    redis.call('ZADD', versions, given, key)
    redis.call('ZADD', ends, ARGV[3], key)
end

-- Each write clears away more than it adds, so that nothing grows for ever.
local ended = redis.call('ZRANGEBYSCORE', ends, '-inf', ARGV[5], 'LIMIT', 0, ARGV[6])
for _, gone in ipairs(ended) do
    redis.call('HDEL', records, gone)
    redis.call('ZREM', versions, gone)
    redis.call('ZREM', ends, gone)
end
return {1, given}
