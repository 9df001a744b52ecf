-- Records written after a version, oldest first. KEYS: records, versions, last version. ARGV: version, limit.
-- Returns {'1' if the list starts from the beginning, last version read, the server's time in milliseconds, then for each record
-- key, version and record}.
-- A server whose last version is below the requested one has been reset, to a backup or to nothing: a mirror must then start
-- from the beginning, as the next write may have any version.
local after = tonumber(ARGV[1])
local last = tonumber(redis.call('GET', KEYS[3]) or '0')
local anew = '0'
if last < after then
    after = 0
    anew = '1'
end
local keys = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%.0f', after), '+inf',
    'WITHSCORES', 'LIMIT', 0, ARGV[2])
local time = redis.call('TIME')
local here = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local answer = {anew, string.format('%.0f', after), string.format('%.0f', here)}
for index = 1, #keys, 2 do
    answer[2] = keys[index + 1]
    answer[#answer + 1] = keys[index]
    answer[#answer + 1] = keys[index + 1]
    answer[#answer + 1] = redis.call('HGET', KEYS[1], keys[index]) or ''
end
return answer
