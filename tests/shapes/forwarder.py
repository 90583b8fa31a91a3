# A stand-in for a pooler beside PostgreSQL: it forwards connections from port 6432.
import socket
import threading


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(2)
        except OSError:
            pass


def serve(client):
    try:
        server = socket.create_connection((socket.gethostname(), 5432), 5)
    except OSError:
        client.close()
        return
    server.settimeout(None)
    threading.Thread(target=pump, args=(client, server), daemon=True).start()
    pump(server, client)


listener = socket.create_server(("", 6432), backlog=200)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
