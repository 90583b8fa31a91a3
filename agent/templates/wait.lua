-- Warden wrote this file, for haproxy.cfg beside it. Warden overwrites changes.
--
-- A new connection for writes waits while no server is up, or while Warden holds new connections. It must not reach a
-- server that is about to stop in a switchover, even if Patroni still answers that this server leads.

-- No connection waits longer than inspect-delay: that is the template's proc.warden_max_wait_ms, or this value.
local MAX_WAIT_MILLISECONDS = 5000

-- The script gives up this long before that.
local MARGIN_MILLISECONDS = 100

-- The time between two checks, each of which reads two counters. A connection checks less often when there are many.
local LOOK_MILLISECONDS = 5
local CONNECTIONS_PER_MILLISECOND = 20

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec // 1000
end

-- HAProxy documents the first form and accepts the second.
local function wake_in(delay)
  if not pcall(act.wake_time, delay) then
    act:wake_time(delay)
  end
end

-- Every check is a call of its own that ends with the time of the next call. HAProxy loses the wake-up of core.msleep()
-- if its clock passes that time before it suspends the function. That happens on a busy machine, and the connection
-- then waits for the whole inspect-delay.
local function wait(txn, has_somewhere_to_go)
  -- A worker that a reload has replaced gets no commands. The template sends its waiting connections to the new worker.
  if has_somewhere_to_go or txn.f:stopping() == 1 then
    txn:set_var("txn.warden_waited", false)
    return act.CONTINUE
  end
  local now = milliseconds()
  local since = txn:get_var("txn.warden_since")
  if not since then
    since = now
    txn:set_var("txn.warden_since", since)
    -- The template then rejects the connection, even if HAProxy does not call again in time.
    txn:set_var("txn.warden_waited", true)
  end
  local limit = txn:get_var("proc.warden_max_wait_ms") or MAX_WAIT_MILLISECONDS
  if now - since > limit - MARGIN_MILLISECONDS then
    return act.CONTINUE
  end
  wake_in(math.max(LOOK_MILLISECONDS, txn.f:fe_conn() // CONNECTIONS_PER_MILLISECOND))
  return act.YIELD
end

-- For the proxy of this name: a server that is up has room or a queue, and the table warden_hold_<proxy> has no entry.
-- All servers but the backup server, which always refuses, have a maxconn. HAProxy therefore counts -1 free connections
-- only if no other server is up.
core.register_action("warden_wait_for", { "tcp-req" }, function(txn, proxy)
  local held = txn.c:table_gpc0("writes", "warden_hold_" .. proxy) > 0
  return wait(txn, not held and txn.f:be_conn_free(proxy) ~= -1)
end, 1)

-- For templates of the time when there was one proxy: the servers in warden_writable track those for writes.
core.register_action("warden_wait", { "tcp-req" }, function(txn)
  local held = txn.c:table_gpc0("writes", "warden_hold") > 0
  return wait(txn, not held and txn.f:nbsrv("warden_writable") > 0)
end)
