-- Removes a record. KEYS: records, versions, ends. ARGV: key. Returns how many there were, 0 or 1.
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return redis.call('HDEL', KEYS[1], ARGV[1])
