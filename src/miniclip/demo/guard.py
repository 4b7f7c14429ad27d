"""Guard in front of the page: which hosts, origins and tokens a request may have, its size, and security headers.

An ASGI application around another one. It refuses a request before its body is read.
Sources: OWASP's cheat sheets on cross-site request forgery and HTTP headers; the Fetch Metadata specification.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
READING = {"GET", "HEAD"}
TOKEN = re.compile(r"[A-Za-z0-9._~-]{12,200}")


class RefusalError(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status.
        message: one line.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Access:
    """Permission to use the page.

    Attributes:
        host: address or name that the server is bound to.
        token: None: no token is needed.
        cookie: name of the cookie that keeps the token; two servers of one host need different names.
    """

    host: str = "127.0.0.1"
    token: str | None = None
    cookie: str = "miniclip"


def is_loopback(host: str) -> bool:
    """Return whether an address or name belongs to this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def access_to(host: str, port: int, token: str | None = None) -> Access:
    """Return the permission to use a server: this machine needs no token, others do.

    Args:
        host: address or name that the server is bound to.
        port: its port.
        token: the token; None: a random one if the host is not this machine only.

    Raises:
        ValueError: the token is short, or has characters with a meaning in addresses.
    """
    if token is None:
        token = None if is_loopback(host) else secrets.token_urlsafe(24)
    elif not TOKEN.fullmatch(token):
        raise ValueError(
            f"--token: found {len(token)} characters; expected 12 to 200 letters, digits and -._~, or no --token for a "
            "random one"
        )
    return Access(host, token, f"miniclip-{port}")


class Guard:
    """ASGI application that passes only permitted requests to another one.

    Args:
        application: the application behind it.
        access: who may use it.
        body_bytes: function of a path that returns the size that a request's body may have.
        locked: HTML for a browser that has no token.
    """

    def __init__(
        self, application: Application, access: Access, body_bytes: Callable[[str], int], locked: bytes
    ) -> None:
        self.application, self.access, self.body_bytes, self.locked = application, access, body_bytes, locked

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":  # the events of start and end; a web socket has no handler
            if scope["type"] == "lifespan":
                await self.application(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        cookie: str | None = None
        try:
            check_host(headers, self.access.host)
            check_origin(scope["method"], scope["path"], headers)
            cookie = self._check_token(scope, headers)
            limited = _limited(receive, headers, self.body_bytes(scope["path"]))
        except RefusalError as refusal:
            wants_page = scope["path"] == "/" and refusal.status == 401
            kind, body = _page(self.locked) if wants_page else _json(refusal.message)
            await _respond(send, refusal.status, kind, body, close=scope["method"] not in READING)
            return
        try:
            await self.application(scope, limited, _with_headers(send, cookie))
        except asyncio.CancelledError:  # the server ends while an upload is on its way
            await _respond(send, 503, *_json("the server is stopping"), close=True)

    def _check_token(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> str | None:
        """Return the cookie to set, if the token is in the address.

        Raises:
            RefusalError: the token is missing, or is another one.
        """
        if self.access.token is None:
            return None
        in_address = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and scope["method"] in READING and in_address:
            self._compare(in_address)
            return f"{self.access.cookie}={self.access.token}; Path=/; HttpOnly; SameSite=Strict"
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            self._compare(bearer.strip())
        else:
            self._compare(_cookie(headers.get("cookie", ""), self.access.cookie))
        return None

    def _compare(self, token: str) -> None:
        expected = str(self.access.token).encode()
        if not secrets.compare_digest(token.encode("utf-8", "surrogateescape"), expected):
            message = "the token is missing or wrong; open the address that `miniclip demo` has printed, with its token"
            raise RefusalError(401, message)


def check_host(headers: dict[str, str], bound: str) -> None:
    """Check the name under which a browser reached the server, against DNS rebinding.

    A stranger's page can make its own name point to this machine, and would then be of the same origin. Its name stays
    in the header Host. A server takes the name it is bound to, and loopback names. One that other machines reach takes
    addresses and this machine's names too.

    Raises:
        RefusalError: the host is another one.
    """
    given = headers.get("host", "")
    try:
        name = (urlsplit(f"//{given}").hostname or "").rstrip(".")
    except ValueError:
        name = ""
    allowed = name in {*LOOPBACK_NAMES, bound.lower()}
    if not allowed and not is_loopback(bound):
        machine = socket.gethostname().lower()
        allowed = name in {machine, f"{machine}.local"} or _is_address(name)
    if not allowed or "@" in given:
        shown = given[:100]
        raise RefusalError(403, f"host {shown!r}: not a name of this server; open the address that it has printed")


def check_origin(method: str, path: str, headers: dict[str, str]) -> None:
    """Check that a request comes from the page itself, and not from another site's page.

    Browsers name the origin of each POST. They send Sec-Fetch-Site with every request, and a page cannot change it.
    Programs send neither.

    Raises:
        RefusalError: the origin is another one.
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    message = "the request comes from a page of another site, which may not use this one"
    if method not in READING and origin is not None:
        scheme, _, place = origin.partition("://")  # an origin has no path
        if scheme not in ("http", "https") or place.lower() != host.lower():
            raise RefusalError(403, message)
    permitted = {"same-origin"} if method not in READING else {"same-origin", "none"}
    if headers.get("sec-fetch-site", "same-origin") not in permitted:
        is_link = method in READING and path == "/" and headers.get("sec-fetch-mode") == "navigate"
        if not is_link:
            raise RefusalError(403, message)


def _limited(receive: Receive, headers: dict[str, str], most: int) -> Receive:
    """Return `receive` with a limit on the bytes of the body, whether or not the request states its length.

    Raises:
        RefusalError: the stated length is above the limit; later, the bytes are.
    """
    refusal = RefusalError(413, f"the request is larger than {most:,} bytes; send less")
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise RefusalError(400, "the header Content-Length is not a number")
    if int(length) > most:
        raise refusal
    count = 0

    async def receive_limited() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > most:
            raise refusal
        return message

    return receive_limited


def _with_headers(send: Send, cookie: str | None) -> Send:
    """Return `send` with the security headers, and a cookie to set, on each response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_security_headers(cookie)]}
        await send(message)

    return send_with_headers


def _security_headers(cookie: str | None = None) -> list[tuple[bytes, bytes]]:
    pairs = list(HEADERS.items()) + ([("Set-Cookie", cookie), ("Cache-Control", "no-store")] if cookie else [])
    return [(name.lower().encode(), value.encode()) for name, value in pairs]


async def _respond(send: Send, status: int, kind: str, body: bytes, close: bool) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *_security_headers()]
    headers += [(b"cache-control", b"no-store")] + ([(b"connection", b"close")] if close else [])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _page(html: bytes) -> tuple[str, bytes]:
    return "text/html; charset=utf-8", html


def _json(message: str) -> tuple[str, bytes]:
    return "application/json", json.dumps({"error": message}).encode()


def _cookie(header: str, name: str) -> str:
    try:
        morsel = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
