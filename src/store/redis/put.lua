-- Does several writes if all their expectations hold, else none.
-- KEYS: for each write records, versions, ends, last version, version that the table began with.
-- ARGV: now, how many ended records to sweep; for each write key, value, end, expectation ('any', 'absent' or a version), and '1' if its
-- table is by the clock of this server, else '0'.
-- A record is 'VERSION:END:' and the value, both numbers in decimal.
-- Gives {how many, version, version ...}, or {'0', which was not written, counted from 0, what stands there or nil}.
local now, writes = tonumber(ARGV[1]), #KEYS / 5

local time = redis.call('TIME')
local here = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Each write clears away more than it adds, so that nothing grows for ever: what has ended by both clocks, so that no replica
-- whose clock is ahead takes from the others what they still go by.
local function sweep(index)
    local records, versions, ends = KEYS[index * 5 + 1], KEYS[index * 5 + 2], KEYS[index * 5 + 3]
    local over = ARGV[index * 5 + 7] == '1' and here or math.min(now, here)
    local ended = redis.call('ZRANGEBYSCORE', ends, '-inf', string.format('%.0f', over), 'LIMIT', 0, ARGV[2])
    for _, gone in ipairs(ended) do
        redis.call('HDEL', records, gone)
        redis.call('ZREM', versions, gone)
        redis.call('ZREM', ends, gone)
    end
end

local removes = true
for index = 0, writes - 1 do
    local at = index * 5 + 2
    local found = redis.call('HGET', KEYS[index * 5 + 1], ARGV[at + 1])
    local version, finish
    if found then
        version, finish = string.match(found, '^(%d+):(%-?%d+):')
        -- The caller judges other records by its own clock when it reads them, and must not be told otherwise here.
        local judged = ARGV[at + 5] == '1' and here or now
        -- One of another form has none, and stands there until it is written over.
        if finish and tonumber(finish) <= judged then found = false end
    end
    local expect = ARGV[at + 4]
    local fits = true
    if expect == 'absent' then
        fits = not found
    elseif expect ~= 'any' then
        fits = found and version == expect
    end
    if not fits then return {'0', tostring(index), found} end
    if tonumber(ARGV[at + 3]) > now then removes = false end
end

-- A server without memory refuses the first command that could take some, and none after one that cannot. So what only removes begins
-- with a removal, which is done again below: nothing else would ever make room.
if removes then redis.call('HDEL', KEYS[1], ARGV[3]) end

-- The server's clock as the floor: a replica that takes over without the last writes gives out no version twice.
local floor = tonumber(time[1]) * 1000000 + tonumber(time[2])
local answer = {tostring(writes)}
for index = 0, writes - 1 do
    local records, versions = KEYS[index * 5 + 1], KEYS[index * 5 + 2]
    local ends, last = KEYS[index * 5 + 3], KEYS[index * 5 + 4]
    local at = index * 5 + 2
    local key, value, finish, is_by_here = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 5] == '1'
    local before = redis.call('GET', last)
    local given = tonumber(before or '0') + 1
    if given < floor then given = floor end
    given = string.format('%.0f', given)
    local set = redis.pcall('SET', last, given)
    if set.err then
        -- The first has found no room, and nothing is written. What has ended goes all the same, so that the next may find some.
        for each = 0, writes - 1 do sweep(each) end
        return set
    end
    -- Whoever has followed a version before this one has followed what is here no more.
    if not before then redis.call('SET', KEYS[index * 5 + 5], given) end
    answer[index + 2] = given

    if tonumber(finish) <= now then
        redis.call('HDEL', records, key)
        redis.call('ZREM', versions, key)
        redis.call('ZREM', ends, key)
    else
        if is_by_here then finish = string.format('%.0f', tonumber(finish) - now + here) end
        redis.call('HSET', records, key, given .. ':' .. finish .. ':' .. value)
        redis.call('ZADD', versions, given, key)
        redis.call('ZADD', ends, finish, key)
    end
    sweep(index)
end
return answer
