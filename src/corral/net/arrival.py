"""Under which policy something has come: the mark of its packet, which the switch's table has set to the generation of that time.

A slot's address is soon another sandbox's, so what waits in a queue is known by its mark, not by where it came from. Source: socket(7), and Linux include/uapi/asm-generic/socket.h.
"""

from __future__ import annotations

import errno
import socket
import struct

_MARK, _RECEIVE_MARK = 36, 75


def mark_of(connection: socket.socket) -> int:
    """Of the packet that began a connection (with the switch's tcp_fwmark_accept); 0: it had none."""
    return connection.getsockopt(socket.SOL_SOCKET, _MARK)


def mark_datagrams(connection: socket.socket) -> None:
    """Have `receive` tell marks, which Linux can since 5.19."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, _RECEIVE_MARK, 1)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise


def receive(connection: socket.socket, size: int) -> tuple[bytes, int | None, tuple[str, int]]:
    """A datagram, its mark (0: it has none; None: the kernel does not tell), and the address and port that it came from. Raises `BlockingIOError` when there is none."""
    data, told, _, (address, port) = connection.recvmsg(size, socket.CMSG_SPACE(4))
    mark = next((struct.unpack("=I", value)[0] for level, kind, value in told if (level, kind) == (socket.SOL_SOCKET, _MARK)), None)
    return data, mark, (str(address), int(port))
