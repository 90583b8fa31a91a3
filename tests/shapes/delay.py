# Delays every packet in a queue of netfilter: a long way to a server. Arguments: the queue's number, milliseconds.
# The kernel's protocol: include/uapi/linux/netfilter/nfnetlink_queue.h.
import heapq
import select
import socket
import struct
import sys
import time

QUEUE, DELAY = int(sys.argv[1]), int(sys.argv[2]) / 1000
SUBSYSTEM, PACKET, VERDICT, CONFIG = 3 << 8, 0, 1, 2
REQUEST, ACCEPT = 1, 1


def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def message(kind, body):
    head = struct.pack("!BBH", socket.AF_UNSPEC, 0, QUEUE)
    return struct.pack("=IHHII", 16 + len(head + body), SUBSYSTEM | kind, REQUEST, 0, 0) + head + body


kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
kernel.bind((0, 0))
kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
kernel.send(message(CONFIG, attribute(1, struct.pack("!BBH", 1, 0, 0))))
kernel.send(message(CONFIG, attribute(2, struct.pack("!IB", 0, 1))))
kernel.send(message(CONFIG, attribute(3, struct.pack("!I", 8192))))
print("ready", flush=True)

held = []
while True:
    wait = max(0, held[0][0] - time.monotonic()) if held else None
    if select.select([kernel], [], [], wait)[0]:
        data = kernel.recv(1 << 16)
        length, kind = struct.unpack_from("=IH", data)
        at = 20
        while kind == SUBSYSTEM | PACKET and at < length:
            size, attribute_kind = struct.unpack_from("=HH", data, at)
            if attribute_kind == 1:
                heapq.heappush(held, (time.monotonic() + DELAY, struct.unpack_from("!I", data, at + 4)[0]))
            at += (size + 3) & ~3
    while held and held[0][0] <= time.monotonic():
        verdict = struct.pack("!II", ACCEPT, heapq.heappop(held)[1])
        kernel.send(message(VERDICT, attribute(2, verdict)))
