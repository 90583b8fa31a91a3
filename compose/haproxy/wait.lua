-- Written by Warden, for haproxy.cfg beside it. What is changed here is written over.
--
-- A new connection for writes waits while no server is up, or while Warden holds it: one that comes in the middle of a
-- switchover must not reach the server that is about to stop, whatever Patroni says of it in that moment.

-- Less than inspect-delay in the template, after which nothing can wait any more.
local LIMIT_SECONDS = 4.9

-- Between two looks. Much less, and HAProxy 2.6 loses a wake-up now and then when the machine is busy: the connection
-- waits until the limit then. Each of these reads two counters; many that wait look less often.
local LOOK_MILLISECONDS = 20
local LOOKS_PER_MILLISECOND = 10

local waiting = 0

local function seconds()
  local now = core.now()
  return now.sec + now.usec / 1000000
end

core.register_action("warden_wait", { "tcp-req" }, function(txn)
  local function has_to_wait()
    return txn.c:table_gpc0("writes", "warden_hold") > 0 or txn.f:nbsrv("warden_writable") == 0
  end
  local until_seconds = seconds() + LIMIT_SECONDS
  waiting = waiting + 1
  while has_to_wait() do
    if seconds() > until_seconds then
      -- The template rejects it.
      txn:set_var("txn.warden_waited", true)
      break
    end
    core.msleep(math.max(LOOK_MILLISECONDS, waiting // LOOKS_PER_MILLISECOND))
  end
  waiting = waiting - 1
end)
