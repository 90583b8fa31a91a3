-- Written by Warden, for haproxy.cfg beside it. What is changed here is written over.
--
-- A new connection for writes waits while no server is up, or while Warden holds it: one that comes in the middle of a
-- switchover must not reach the server that is about to stop, whatever Patroni says of it in that moment.

-- After inspect-delay nothing can wait any more: that is the template's proc.warden_max_wait_ms, or this.
local MAX_WAIT_MILLISECONDS = 5000

-- So long before that whoever waits is given up.
local MARGIN_MILLISECONDS = 100

-- Between two looks, each of which reads two counters. The more connections there are, the less often each looks.
local LOOK_MILLISECONDS = 5
local CONNECTIONS_PER_MILLISECOND = 20

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec // 1000
end

-- HAProxy documents the one and takes the other.
local function wake_in(delay)
  if not pcall(act.wake_time, delay) then
    act:wake_time(delay)
  end
end

-- Every look is a call of its own that ends, with the time of the next: not a loop around core.msleep(), whose wake-up
-- HAProxy loses when its clock has gone beyond it by the time that the function is put aside. On a busy machine that
-- happens, and the connection then waits for the whole of inspect-delay.
core.register_action("warden_wait", { "tcp-req" }, function(txn)
  local has_somewhere_to_go = txn.c:table_gpc0("writes", "warden_hold") == 0 and txn.f:nbsrv("warden_writable") > 0
  -- A worker that a reload has replaced is told nothing any more: the template sends whoever waits there to the new one.
  if has_somewhere_to_go or txn.f:stopping() == 1 then
    txn:set_var("txn.warden_waited", false)
    return act.CONTINUE
  end
  local now = milliseconds()
  local since = txn:get_var("txn.warden_since")
  if not since then
    since = now
    txn:set_var("txn.warden_since", since)
    -- The template rejects it, also if HAProxy does not ask again in time.
    txn:set_var("txn.warden_waited", true)
  end
  local limit = txn:get_var("proc.warden_max_wait_ms") or MAX_WAIT_MILLISECONDS
  if now - since > limit - MARGIN_MILLISECONDS then
    return act.CONTINUE
  end
  wake_in(math.max(LOOK_MILLISECONDS, txn.f:fe_conn() // CONNECTIONS_PER_MILLISECOND))
  return act.YIELD
end)
