"""The far ends of the fake engine's consoles: a login that echoes, and a display that shows nothing."""

import socket
import struct
import threading
from collections.abc import Callable

WIDTH, HEIGHT = 64, 48
# 32 bits per pixel, 24 of them used, little endian, true colour.
PIXELS = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)


def open_stream(serve: Callable[[socket.socket], None]) -> socket.socket:
    """One end of a stream whose other end is served by a thread until it is closed."""
    near, far = socket.socketpair()

    def run() -> None:
        with far:
            try:
                serve(far)
            except (BrokenPipeError, ConnectionResetError):
                return  # the user has left

    threading.Thread(target=run, daemon=True, name="fake-console").start()
    return near


def serve_serial(stream: socket.socket, hostname: str) -> None:
    """A terminal: says who it is, then echoes what is typed and prompts after each line."""
    prompt = f"root@{hostname}:~# ".encode()
    stream.sendall(f"\r\natonix fake machine {hostname}, logged in automatically\r\n".encode() + prompt)
    while typed := stream.recv(4096):
        stream.sendall(typed.replace(b"\r", b"\n").replace(b"\n", b"\r\n" + prompt))


def serve_display(stream: socket.socket, name: str) -> None:
    """An RFB 3.8 server without password, up to the point where pictures would be sent."""
    stream.sendall(b"RFB 003.008\n")
    stream.recv(12, socket.MSG_WAITALL)
    stream.sendall(b"\x01\x01")  # one way in: no authentication
    stream.recv(1, socket.MSG_WAITALL)
    stream.sendall(b"\0\0\0\0")
    stream.recv(1, socket.MSG_WAITALL)
    stream.sendall(struct.pack(">HH", WIDTH, HEIGHT) + PIXELS + struct.pack(">I", len(name)) + name.encode())
    while stream.recv(4096):
        continue
