"""What stands before the local server's pages: only requests of this machine's own pages come through, in time.

A page of another site can make a browser send requests to 127.0.0.1 (cross-site forms), or point a name of its own
there (DNS rebinding). Both show in the headers ``Host``, ``Origin`` and ``Sec-Fetch-Site``, which no page can forge:
what changes something must name the server's own origin. The files of a run may come from anywhere; they are served so
that nothing in them runs (:data:`SANDBOX`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["SANDBOX", "Guard", "timed_protocol"]

LONGEST_ADDRESS = 2048
LONGEST_HEADERS = 32_768

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


SANDBOX = {"Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"}
"""For a file of a run: opened as a page it has an origin of its own, and no script of it runs."""


class Guard:
    """Refuses foreign and over-long requests, and adds security headers to every response.

    Args:
        app: what answers the others.
        port: that the server listens on.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        if port == 80:
            self._hosts |= {"127.0.0.1", "localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if message["status"] >= 400:  # what is left of a refused request is not read
                    headers["Connection"] = "close"
            await send(message)

        refused = self._refuse(scope)
        await (self._app if refused is None else refused)(scope, receive, send_with_headers)

    def _refuse(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        if len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"]) > LONGEST_ADDRESS:
            return PlainTextResponse(f"the address is longer than {LONGEST_ADDRESS} bytes\n", 414)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LONGEST_HEADERS:
            return PlainTextResponse(f"the headers are longer than {LONGEST_HEADERS} bytes\n", 431)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return PlainTextResponse("this server answers only under its own address on this machine\n", 403)
        foreign = any(origin.lower() not in {f"http://{host}" for host in self._hosts} for origin in origins)
        changes = scope["method"] not in ("GET", "HEAD")
        if foreign or (changes and (not origins or headers.get("sec-fetch-site", "same-origin") != "same-origin")):
            return PlainTextResponse("this server answers only its own pages\n", 403)
        return None


def timed_protocol(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with a limit on the time between a connection, or an answer, and the next request.

    Uvicorn itself waits for ever for the rest of a request's head.
    """

    class Timed(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:  # the application has the request
                self._cancel()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._cancel()
            self._timer = self.loop.call_later(seconds, self.transport.close)

        def _cancel(self) -> None:
            if self._timer is not None:
                self._timer.cancel()

    return Timed
