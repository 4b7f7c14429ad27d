"""Server of the page: its socket, its address, and its end with Ctrl-C."""

from __future__ import annotations

import errno
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from miniclip.demo.guard import Application

SECONDS_TO_END = 3  # for answers under way at Ctrl-C


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a host and a port; port 0 is any free one.

    Raises:
        ValueError: the port is out of range, used, or only for root; the host is not an address of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: expected 0 to 65535; 0 is any free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise ValueError(f"--host {host}: no such host; expected an address of this machine, as in 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there, it would allow two servers on one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as error:
        listener.close()
        reasons = {
            errno.EADDRINUSE: f"--port {port}: another program uses it; choose another, as in --port {port + 1}",
            errno.EACCES: f"--port {port}: needs the rights of root; choose one from 1024 on, as in --port 7860",
            errno.EADDRNOTAVAIL: f"--host {host}: is not an address of this machine; expected one, as in 127.0.0.1",
        }
        raise ValueError(reasons.get(error.errno or 0, f"{host}:{port}: {error.strerror}")) from error
    return listener


def address_of(listener: socket.socket, host: str, token: str | None = None) -> str:
    """Return the address to open in a browser."""
    port = listener.getsockname()[1]
    if host in {"0.0.0.0", "::", ""}:  # every address of this machine
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")


class PageServer:
    """Server of one page.

    Args:
        application: the page.
        listener: a socket that listens.
        on_start: called when the server answers.
    """

    def __init__(
        self, application: Application, listener: socket.socket, on_start: Callable[[], None] = lambda: None
    ) -> None:
        import uvicorn

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                on_start()

        self.listener = listener
        self._server = Server(
            uvicorn.Config(
                application,
                access_log=False,  # it would print the token
                http="h11",
                lifespan="off",
                log_level="warning",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=SECONDS_TO_END,
                ws="none",
            )
        )

    def run(self) -> None:
        """Answer requests until Ctrl-C, SIGTERM or `stop`; answers under way are sent first."""
        with interrupted_by_termination(), suppress(KeyboardInterrupt):  # the usual end
            try:
                self._server.run(sockets=[self.listener])
            finally:
                self.listener.close()

    def stop(self) -> None:
        """End `run`, from any thread."""
        self._server.should_exit = True


@contextmanager
def interrupted_by_termination() -> Iterator[None]:
    """Context in which SIGTERM raises KeyboardInterrupt, so that temporary files are deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
