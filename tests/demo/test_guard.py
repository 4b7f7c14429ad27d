"""Guard of the page: hosts, origins, tokens, sizes, headers."""

import asyncio
import json

import pytest

pytest.importorskip("fastapi", reason="needs the extra demo")

from miniclip.demo.guard import HEADERS, Access, Guard, RefusalError, access_to, is_loopback

SAME = {"host": "127.0.0.1:7860"}
OPEN = Access("0.0.0.0", "a-long-secret-token")


def ask(path="/api/search", method="POST", headers=SAME, access=None, body=(b"{}",), query=b""):
    """Send one request through a guard; returns its status, headers, body, and the bytes that passed."""
    passed, sent, parts = [], [], list(body)

    async def application(scope, receive, send):
        more = True
        while more:
            message = await receive()
            passed.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"passed"})

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs, "query_string": query}
    guard = Guard(application, access or Access(), lambda path: 100, b"locked")
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"], b"".join(passed)


def message(result):
    status, _, body, passed = result
    assert passed == b""
    return status, json.loads(body)["error"]


def test_own_page_passes_with_security_headers():
    status, headers, body, passed = ask(
        headers=SAME | {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    )
    assert (status, body, passed) == (200, b"passed", b"{}")
    for name, value in HEADERS.items():
        assert headers[name.lower().encode()] == value.encode()
    assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "LOCALHOST:1"])
def test_names_of_this_machine_pass(host):
    assert ask(headers={"host": host})[0] == 200


def test_name_that_the_server_is_bound_to_passes():
    assert ask(headers={"host": "127.0.0.2:7860"}, access=Access("127.0.0.2"))[0] == 200
    assert ask(headers={"host": "127.0.0.2:7860"})[0] == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example:7860", "192.168.1.7:7860", "localhost@evil.example", "", "[", "x:y"],
)
def test_other_hosts_are_refused(host):
    status, error = message(ask(headers={"host": host}))
    assert status == 403
    assert "not a name of this server" in error


def test_open_server_takes_addresses_and_no_stranger_name():
    cookie = {"cookie": f"miniclip={OPEN.token}"}
    assert ask(headers={"host": "192.168.1.7:7860"} | cookie, access=OPEN)[0] == 200
    assert ask(headers={"host": "evil.example"} | cookie, access=OPEN)[0] == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:8000",
        "http://localhost:7860",
        "file://127.0.0.1:7860",
        "http://[127.0.0.1:7860",
    ],
)
def test_other_origins_are_refused(origin):
    status, error = message(ask(headers=SAME | {"origin": origin}))
    assert status == 403
    assert "another site" in error


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_requests_of_other_sites_are_refused(site):
    assert message(ask(headers=SAME | {"sec-fetch-site": site}))[0] == 403
    embedded = ask("/api/images/1", "GET", SAME | {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}, body=(b"",))
    assert embedded[0] == (200 if site == "none" else 403)


def test_link_to_the_page_passes():
    headers = SAME | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert ask("/", "GET", headers, body=(b"",))[0] == 200
    assert ask("/api/images/1", "GET", headers, body=(b"",))[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cookie": "miniclip=wrong"},
        {"cookie": "miniclip=\xe9"},
        {"cookie": "other=a-long-secret-token"},
        {"cookie": "="},
        {"authorization": "Bearer wrong"},
    ],
)
def test_requests_without_the_token_are_refused(headers):
    status, error = message(ask(headers=SAME | headers, access=OPEN))
    assert status == 401
    assert "token is missing or wrong" in error


def test_browser_without_the_token_gets_a_page():
    status, headers, body, passed = ask("/", "GET", access=OPEN, body=(b"",))
    assert (status, body, passed) == (401, b"locked", b"")
    assert headers[b"content-type"].startswith(b"text/html")


def test_token_of_the_address_becomes_a_cookie():
    status, headers, *_ = ask("/", "GET", access=OPEN, body=(b"",), query=b"token=a-long-secret-token")
    cookie = headers[b"set-cookie"].decode()
    assert status == 200
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert headers[b"cache-control"] == b"no-store"
    assert ask(headers=SAME | {"cookie": cookie.split(";")[0]}, access=OPEN)[0] == 200
    assert ask(headers=SAME | {"authorization": f"Bearer {OPEN.token}"}, access=OPEN)[0] == 200
    assert ask("/", "GET", access=OPEN, body=(b"",), query=b"token=wrong")[0] == 401


@pytest.mark.parametrize("length", ["101", "9" * 30, "-1", "x"])
def test_stated_length_is_limited(length):
    status, _ = message(ask(headers=SAME | {"content-length": length}))
    assert status == (413 if length.isdecimal() else 400)


def test_length_that_is_not_stated_is_limited():
    assert ask(body=(bytes(60), bytes(40)))[0] == 200
    with pytest.raises(RefusalError, match="larger than 100 bytes"):
        ask(body=(bytes(60), bytes(41), bytes(1)))


def test_request_under_way_at_the_end_of_the_server_gets_an_answer():
    sent = []

    async def cancelled(scope, receive, send):
        raise asyncio.CancelledError

    async def keep(message):
        sent.append(message)

    pairs = [(b"host", b"127.0.0.1")]
    scope = {"type": "http", "method": "POST", "path": "/api/uploads", "headers": pairs, "query_string": b""}
    asyncio.run(Guard(cancelled, Access(), lambda path: 100, b"")(scope, None, keep))
    assert (sent[0]["status"], json.loads(sent[1]["body"])) == (503, {"error": "the server is stopping"})


def test_loopback():
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.9.9.9")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")
    assert not is_loopback("example.org")


def test_token_is_made_for_other_hosts_only():
    assert access_to("127.0.0.1", 7860).token is None
    first, second = access_to("0.0.0.0", 7860), access_to("0.0.0.0", 7861)
    assert len(str(first.token)) >= 32
    assert first.token != second.token
    assert first.cookie != second.cookie
    assert access_to("127.0.0.1", 1, "my-own-secret").token == "my-own-secret"


@pytest.mark.parametrize("token", ["", "short", "with spaces in it", "semicolon;in-it-", "new\nline-in-the-token"])
def test_token_that_is_not_safe_is_refused(token):
    with pytest.raises(ValueError, match=r"--token: found \d+ characters; expected 12"):
        access_to("0.0.0.0", 7860, token)
