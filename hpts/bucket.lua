-- Take requests out of token buckets, out of all of them or out of none, at one moment by Redis' own clock.
--
-- A bucket is one number: the microsecond at which it will be full again. No key means full; a key expires when it is.
-- KEYS: the buckets. ARGV: how many requests; whether they are taken in any case (1: the bucket then owes them);
--       then for each bucket the microseconds that one request takes to come back, and how many requests it holds.
-- Answers: the microseconds to wait before it would be granted (0: it is), which bucket is the tightest (1 is the first),
--          how many requests are left in it, and the microseconds until that one is full.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local cost, always = tonumber(ARGV[1]), ARGV[2] == '1'
local owed, wait = {}, 0
for i, key in ipairs(KEYS) do
    local interval, size = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
    local before = math.max((tonumber(redis.call('GET', key) or '0') or 0) - now, 0)
    owed[i] = {before, before + cost * interval, interval, size}
    wait = math.max(wait, owed[i][2] - size * interval)
end
local granted = wait <= 0 or always
local tightest, least, full
for i, key in ipairs(KEYS) do
    local before, after, interval, size = unpack(owed[i])
    local now_owed = before
    if granted then
        redis.call('SET', key, string.format('%.0f', now + after), 'PX', math.ceil(after / 1000) + 1)
        now_owed = after
    end
    local left = math.max(math.floor(size - now_owed / interval), 0)
    if least == nil or left < least then
        tightest, least, full = i, left, now_owed
    end
end
return {granted and 0 or wait, tightest, least, full}
