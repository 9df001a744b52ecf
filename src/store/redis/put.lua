-- Does several writes if all their expectations hold, otherwise none.
-- KEYS: for each write records, versions, ends, last version, version that the table began with.
-- ARGV: now, how many expired records to sweep; for each write key, value, expiry, expectation ('any', 'absent' or a version), and '1' if
-- its table expires by the clock of this server, otherwise '0'.
-- A record is 'VERSION:EXPIRY:' and the value, both numbers in decimal.
-- Returns {how many, version, version ...}, or {'0', index of the conflict (from 0), the record that is there or nil}.
local now, writes = tonumber(ARGV[1]), #KEYS / 5

local time = redis.call('TIME')
local here = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Each write removes more than it adds, so that nothing grows for ever. It removes records that have expired by both clocks, so that a
-- replica whose clock is ahead does not remove records that are valid for the others.
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
        -- The caller expires other records by its own clock when it reads them, so the same clock must decide here.
        local judged = ARGV[at + 5] == '1' and here or now
        -- A malformed record has no expiry, and stays until it is overwritten.
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

-- A server without memory refuses a script whose first write command could allocate some, but not one that begins with a command that
-- cannot. So a script that only removes records begins with a removal, which is repeated below: nothing else would ever free memory.
if removes then redis.call('HDEL', KEYS[1], ARGV[3]) end

-- The server's clock is the floor: a replica that takes over without the last writes assigns no version twice.
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
        -- There was no memory for the first write, and nothing is written. Expired records are removed nevertheless, so that the next
        -- write may succeed.
        for each = 0, writes - 1 do sweep(each) end
        return set
    end
    -- A mirror that followed an earlier version has followed records that are gone.
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
