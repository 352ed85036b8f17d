"""Faults of networks on the sockets of clients: packets that are lost, and resets."""

from __future__ import annotations

import ctypes
import socket
import struct

# A filter of a socket (BPF) that drops every packet: `return 0`.
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_SO_ATTACH_FILTER = 26


def drop_packets(sock: socket.socket) -> None:
    """Takes the network away from a socket.

    No packet reaches it any more, so that its kernel answers none either. The other end is told
    nothing: it has to find out.
    """
    program = struct.pack("HL", 1, ctypes.addressof(_DROP_ALL))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def reset_when_closed(sock: socket.socket) -> None:
    """Has the close of a socket send RST in the place of FIN, and leave no TIME_WAIT behind."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
