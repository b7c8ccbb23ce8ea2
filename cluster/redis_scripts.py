"""The steps that must happen in Redis as one, in Lua. Time is always the server's.

Numbers go in and out as text. Each constant says its KEYS and ARGV. The rules of quotas are those of `quota.py`.
"""

from __future__ import annotations

from cluster.quota import CONCURRENCY_RETRY_S

_NOW = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""

# KEYS routers, load, born. ARGV router, lease ms, its load, a new incarnation.
# Answers: now ms, incarnation, all loads by router.
HEARTBEAT = (
    _NOW
    + """
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('HDEL', KEYS[2], gone)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('SET', KEYS[3], ARGV[4], 'NX')
return {now, redis.call('GET', KEYS[3]), redis.call('HGETALL', KEYS[2])}
"""
)

# Every quota script: KEYS levels, claims, claims that have ended. ARGV 1 to 6: rate and depth of requests, of tokens,
# concurrency, lease ms.
_QUOTA = (
    _NOW
    + """
local request_rate, request_depth = tonumber(ARGV[1]), tonumber(ARGV[2])
local token_rate, token_depth = tonumber(ARGV[3]), tonumber(ARGV[4])
local lease = tonumber(ARGV[6])
local state = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at')
local passed = math.max(0, now - (tonumber(state[3]) or now)) / 1000
local requests = math.min(request_depth, (tonumber(state[1]) or request_depth) + passed * request_rate)
local tokens = math.min(token_depth, (tonumber(state[2]) or token_depth) + passed * token_rate)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)

local function take(id, wanted)
  if request_rate > 0 then requests = requests - 1 end
  if token_rate > 0 then tokens = tokens - wanted end
  redis.call('ZADD', KEYS[2], now + lease, id)
end

local function keep()
  redis.call('HSET', KEYS[1], 'requests', tostring(requests), 'tokens', tostring(tokens), 'at', now)
  local full = 0
  if request_rate > 0 then full = (request_depth - requests) / request_rate end
  if token_rate > 0 then full = math.max(full, (token_depth - tokens) / token_rate) end
  redis.call('PEXPIRE', KEYS[1], math.ceil(full * 1000) + 60000)
  redis.call('PEXPIRE', KEYS[2], 2 * lease)
end
"""
)

# ARGV 7, 8: claim, tokens. Answers: the limit that denies, or 'granted'; seconds to wait.
CLAIM = (
    _QUOTA
    + f"""
local id, wanted = ARGV[7], tonumber(ARGV[8])
if redis.call('ZSCORE', KEYS[2], id) then return {{'granted', '0'}} end
local concurrent = tonumber(ARGV[5])
if concurrent > 0 and redis.call('ZCARD', KEYS[2]) >= concurrent then
  return {{'concurrency', '{CONCURRENCY_RETRY_S}'}}
end
local request_wait, token_wait = 0, 0
if request_rate > 0 then request_wait = (math.min(1, request_depth) - requests) / request_rate end
if token_rate > 0 then token_wait = (math.min(wanted, token_depth) - tokens) / token_rate end
if math.max(request_wait, token_wait) > 0 then
  if token_wait > request_wait then return {{'tokens', tostring(token_wait)}} end
  return {{'requests', tostring(request_wait)}}
end
take(id, wanted)
keep()
return {{'granted', '0'}}
"""
)

# ARGV from 7, in pairs: claim, tokens. Claims that were granted elsewhere and count here too, but for those that have
# ended here: a router whose word was heard, but not answered in time, says it again.
NOTE = (
    _QUOTA
    + """
for at = 7, #ARGV, 2 do
  local known = redis.call('ZSCORE', KEYS[2], ARGV[at]) or redis.call('ZSCORE', KEYS[3], ARGV[at])
  if not known then take(ARGV[at], tonumber(ARGV[at + 1])) end
end
keep()
"""
)

# ARGV from 7, in threes: claim, unused requests, unused tokens.
GIVE_BACK = (
    _QUOTA
    + """
for at = 7, #ARGV, 3 do
  if redis.call('ZREM', KEYS[2], ARGV[at]) == 1 then
    redis.call('ZADD', KEYS[3], now + lease, ARGV[at])
    requests = math.min(request_depth, requests + ARGV[at + 1])
    tokens = math.min(token_depth, tokens + ARGV[at + 2])
  end
end
redis.call('PEXPIRE', KEYS[3], lease)
keep()
"""
)

# KEYS claims. ARGV lease ms, claims.
RENEW = (
    _NOW
    + """
for at = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[at]) end
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[1])
"""
)

# KEYS pins. ARGV how long to keep, ms; how many; then in pairs: session, worker.
PIN = (
    _NOW
    + """
for at = 3, #ARGV, 2 do redis.call('XADD', KEYS[1], '*', 's', ARGV[at], 'w', ARGV[at + 1]) end
redis.call('XTRIM', KEYS[1], 'MINID', now - ARGV[1])
redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[2])
"""
)

# KEYS journal, its index. ARGV how many to keep; then in pairs: request, record.
JOURNAL = """
for at = 2, #ARGV, 2 do
  local entry = redis.call('XADD', KEYS[1], '*', 'id', ARGV[at], 'record', ARGV[at + 1])
  redis.call('HSET', KEYS[2], ARGV[at], entry)
end
local excess = redis.call('XLEN', KEYS[1]) - ARGV[1]
if excess > 0 then
  for _, old in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', excess)) do
    if redis.call('HGET', KEYS[2], old[2][2]) == old[1] then redis.call('HDEL', KEYS[2], old[2][2]) end
    redis.call('XDEL', KEYS[1], old[1])
  end
end
"""

# KEYS journal, its index. ARGV request. Answers: the record, or nothing.
RECALL = """
local entry = redis.call('HGET', KEYS[2], ARGV[1])
if not entry then return false end
local found = redis.call('XRANGE', KEYS[1], entry, entry)
return found[1] and found[1][2][4] or false
"""
