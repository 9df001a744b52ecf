-- Does several writes if all their expectations hold, else none.
-- KEYS: for each write records, versions, ends, last version.
-- ARGV: now, how many ended records to sweep; for each write key, value, end, expectation ('any', 'absent' or a version).
-- A record is 'VERSION:END:' and the value, both numbers in decimal.
-- Gives {how many, version, version ...}, or {'0', which was not written, counted from 0, what stands there or nil}.
local now, writes = tonumber(ARGV[1]), #KEYS / 4

for index = 0, writes - 1 do
    local found = redis.call('HGET', KEYS[index * 4 + 1], ARGV[index * 4 + 3])
    local version, finish
    if found then
        version, finish = string.match(found, '^(%d+):(%-?%d+):')
        if tonumber(finish) <= now then found = false end
    end
    local expect = ARGV[index * 4 + 6]
    local fits = true
    if expect == 'absent' then
        fits = not found
    elseif expect ~= 'any' then
        fits = found and version == expect
    end
    if not fits then return {'0', tostring(index), found} end
end

-- The server's clock as the floor: a replica that takes over without the last writes gives out no version twice.
local time = redis.call('TIME')
local floor = tonumber(time[1]) * 1000000 + tonumber(time[2])
local answer = {tostring(writes)}
for index = 0, writes - 1 do
    local records, versions = KEYS[index * 4 + 1], KEYS[index * 4 + 2]
    local ends, last = KEYS[index * 4 + 3], KEYS[index * 4 + 4]
    local key, value, finish = ARGV[index * 4 + 3], ARGV[index * 4 + 4], ARGV[index * 4 + 5]
    local given = tonumber(redis.call('GET', last) or '0') + 1
    if given < floor then given = floor end
    given = string.format('%.0f', given)
    redis.call('SET', last, given)
    answer[index + 2] = given

    if tonumber(finish) <= now then
        redis.call('HDEL', records, key)
        redis.call('ZREM', versions, key)
        redis.call('ZREM', ends, key)
    else
        redis.call('HSET', records, key, given .. ':' .. finish .. ':' .. value)
        redis.call('ZADD', versions, given, key)
        redis.call('ZADD', ends, finish, key)
    end

    -- Each write clears away more than it adds, so that nothing grows for ever.
    local ended = redis.call('ZRANGEBYSCORE', ends, '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
    for _, gone in ipairs(ended) do
        redis.call('HDEL', records, gone)
        redis.call('ZREM', versions, gone)
        redis.call('ZREM', ends, gone)
    end
end
return answer
