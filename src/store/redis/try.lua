-- Calls each command of the other scripts in a form that changes nothing, so that a right which the ACL user lacks is noticed before it
-- is needed. A replica, a full server, or one without its disk refuses this as it does any write. KEYS: one that is never created.
redis.call('SET', KEYS[1], '', 'XX')
redis.call('GET', KEYS[1])
redis.call('TIME')
redis.call('HGET', KEYS[1], '')
redis.call('HDEL', KEYS[1], '')
redis.call('ZREM', KEYS[1], '')
redis.call('ZADD', KEYS[1], 'XX', 0, '')
redis.call('ZRANGEBYSCORE', KEYS[1], 0, 0)
-- It would create the key, so it has a value too few. Whether the user may call it is checked before that.
local set = redis.pcall('HSET', KEYS[1], '', '', '')
if set.err and string.find(set.err, 'wrong number of arguments', 1, true) then return 1 end
return set
