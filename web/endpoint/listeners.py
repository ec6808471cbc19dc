"""Listening sockets: bound, or refused with a sentence that helps. Imports nothing of ours but settings and errors."""

from __future__ import annotations

import errno
import socket

from engine.errors import UserError
from web.endpoint.settings import EndpointSettings

ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""The name resolves to an address that this machine has not got (as ::1 of localhost); the others will do."""


def open_listeners(settings: EndpointSettings) -> list[socket.socket]:
    """One non-blocking listening socket for each address of the host; all have the same port, also when it is 0.

    Raises:
        UserError: `port_taken` or `bad_address`.
    """
    found: list[socket.socket] = []
    port = settings.port
    try:
        for family, address in _addresses(settings):
            try:
                found.append(_bind(family, (address[0], port), settings.backlog))
            except OSError as problem:
                if problem.errno not in ABSENT or not found:
                    raise
            port = found[0].getsockname()[1]
    except OSError as problem:
        for listener in found:
            listener.close()
        raise _refusal(problem, settings) from problem
    return found


def _addresses(settings: EndpointSettings) -> list[tuple[int, tuple[str, int]]]:
    answers = socket.getaddrinfo(settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    answers.sort(key=lambda answer: answer[0] != socket.AF_INET)
    unique = {(int(family), str(address[0])): (str(address[0]), settings.port) for family, *_, address in answers}
    return [(family, address) for (family, _), address in unique.items()]


def _bind(family: int, address: tuple[str, int], backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _refusal(problem: OSError, settings: EndpointSettings) -> UserError:
    where = f"{settings.host}:{settings.port}"
    if problem.errno == errno.EADDRINUSE:
        return UserError("port_taken", f"Another program listens on {where}. Choose another port with --port.")
    if problem.errno == errno.EACCES:
        return UserError("port_taken", f"Listening on {where} is not permitted. Choose a port above 1023.")
    return UserError("bad_address", f"It is not possible to listen on {where}: {problem.strerror or problem}.")


def url_of(listener: socket.socket, secure: bool) -> str:
    """As `http://127.0.0.1:4000`."""
    host, port = listener.getsockname()[:2]
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
