-- Take requests out of token buckets, out of all of them alike or out of none, at one moment by Redis' own clock.
--
-- A bucket is one number: the microsecond at which it will be full again. No key means full; a key expires when it is.
-- KEYS: the buckets. ARGV: the most and the fewest requests that are wanted, of which as many are taken as there are;
--       whether the most are taken in any case (1: the bucket then owes them);
--       then for each bucket the microseconds that one request takes to come back, and how many requests it holds.
-- Answers: how many have been taken, the microseconds to wait before the fewest would be (0: they are), which bucket is the
--          tightest (1 is the first), how many requests are left in it, and the microseconds until that one is full.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local most, fewest, always = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local owed, taken, wait = {}, most, 0
for i, key in ipairs(KEYS) do
    local interval, size = tonumber(ARGV[2 * i + 2]), tonumber(ARGV[2 * i + 3])
    local before = math.max((tonumber(redis.call('GET', key) or '0') or 0) - now, 0)
    owed[i] = {before, interval, size}
    taken = math.min(taken, math.floor(size - before / interval))
    wait = math.max(wait, before + fewest * interval - size * interval)
end
if always then
    taken, wait = most, 0
elseif taken < fewest then
    taken = 0
end
local tightest, least, full
for i, key in ipairs(KEYS) do
    local before, interval, size = unpack(owed[i])
    local after = before + taken * interval
    if taken > 0 then
        redis.call('SET', key, string.format('%.0f', now + after), 'PX', math.ceil(after / 1000) + 1)
    end
    local left = math.max(math.floor(size - after / interval), 0)
    if least == nil or left < least then
        tightest, least, full = i, left, after
    end
end
return {taken, taken > 0 and 0 or math.max(wait, 1), tightest, least, full}
