# Answers HAProxy's agent-check at port 9010: "ready up" where Patroni leads, and "maint" elsewhere. With a number of
# seconds as its argument it keeps each answer for that long.
import socket
import sys
import time
import urllib.request

keep = float(sys.argv[1]) if len(sys.argv) > 1 else 0
answer, until = b"maint\n", 0.0
listener = socket.create_server(("", 9010), backlog=50)
while True:
    client = listener.accept()[0]
    if time.monotonic() >= until:
        try:
            leads = urllib.request.urlopen("http://localhost:8008/primary", timeout=1).status == 200
        except OSError:
            leads = False
        answer, until = b"ready up\n" if leads else b"maint\n", time.monotonic() + keep
    try:
        client.sendall(answer)
    except OSError:
        pass
    client.close()
