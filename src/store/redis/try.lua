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
-- It would create the key, or count as an error of the server's. Servers before Redis 7 do not say whether the user may call it.
if redis.acl_check_cmd and not redis.acl_check_cmd('HSET', KEYS[1], '', '') then
    return redis.error_reply("NOPERM the user can't run this command: HSET")
end
return 1
