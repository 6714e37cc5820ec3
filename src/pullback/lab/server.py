"""The local server: the gallery, a page to start a run, pages that show a run while it goes on. 127.0.0.1 only."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from pullback.core.errors import UsageError
from pullback.data.cache import missing
from pullback.lab import registry
from pullback.lab.gallery import Entry, Pages, Store, artifact_files, assets
from pullback.lab.guard import SANDBOX, Guard, timed_protocol
from pullback.lab.launcher import PROGRAM, BusyError, Launched, Launcher
from pullback.lab.request import choices, is_editable, parse_request
from pullback.lab.result import SCALES, RunResult
from pullback.lab.runner import check_ready

__all__ = ["configuration", "create_app", "serve"]

_LARGEST_FORM = 65_536
_MOST_FIELDS = 200
_SLOWEST_FORM = 10.0
_IDLE = 15.0
_ASSETS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".webp": "image/webp"}
_SHOWN = {".png": "image/png", ".svg": "image/svg+xml", ".wav": "audio/wav"}
"""Files of a run that a page shows; the others are downloads."""


def serve(runs: str | Path, *, port: int = 8000) -> None:
    """Serve the gallery of a results store on 127.0.0.1 until it is interrupted; then stop the runs it has started.

    Args:
        runs: the results store; it need not exist.
        port: 0 takes a free one.

    Raises:
        UsageError: the port is taken or not allowed.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()  # so that the address answers from the moment it is printed
    except OSError as error:
        listening.close()
        raise UsageError(f"port {port} cannot be used: {error.strerror}; choose another with --port") from error
    port = listening.getsockname()[1]
    server = uvicorn.Server(configuration(create_app(Path(runs), port)))
    print(f"serving {runs} on http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has shut down when it passes the signal on
        server.run(sockets=[listening])


def configuration(app: Starlette, *, idle: float = _IDLE) -> uvicorn.Config:
    """Return how the application is served; ``idle`` seconds without a request end a connection."""
    return uvicorn.Config(
        app,
        http=timed_protocol(idle),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=200,
        timeout_graceful_shutdown=2,
    )


def create_app(runs: Path, port: int, *, program: Sequence[str] = PROGRAM, at_once: int = 1) -> Starlette:
    """Return the application.

    Args:
        runs: the results store.
        port: that it is served on, which decides the allowed ``Host`` and ``Origin``.
        program: words of the command before ``run``.
        at_once: most runs that go on at the same time.
    """
    launcher = Launcher(runs, program=program, at_once=at_once)
    site = _Site(Store(runs), launcher)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(launcher.close)

    app = Starlette(
        routes=[
            Route("/", site.index),
            Route("/index.html", site.index),
            Route("/start", site.start, methods=["GET", "POST"]),
            Route("/started/{number}", site.started),
            Route("/started/{number}/state", site.state),
            Route("/started/{number}/stop", site.stop, methods=["POST"]),
            Route("/systems/{slug}/", site.system),
            Route("/systems/{slug}/index.html", site.system),
            Route("/systems/{slug}/{run}/", site.run),
            Route("/systems/{slug}/{run}/index.html", site.run),
            Route("/systems/{slug}/{run}/{file}", site.file),
            *(Route(f"/{name}", site.asset) for name in assets()),
        ],
        middleware=[Middleware(Guard, port=port)],
        exception_handlers={HTTPException: site.problem, ClientDisconnect: _gone},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # an address that does not exist is told so
    return app


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads the answer."""
    return Response(status_code=400)


class _Site:
    """The pages by address. Those that read the store are plain functions: they run in a thread, one at a time."""

    def __init__(self, store: Store, launcher: Launcher) -> None:
        self._store, self._launcher = store, launcher
        self._pages = Pages(live=True)
        self._assets = assets()
        self._lock = Lock()

    def index(self, request: Request) -> Response:
        """The start page."""
        with self._lock:
            return HTMLResponse(self._pages.index(self._store.entries()))

    def system(self, request: Request) -> Response:
        """The page of a system."""
        with self._lock:
            return HTMLResponse(self._pages.system(self._entry(request)))

    def run(self, request: Request) -> Response:
        """The page of one run."""
        with self._lock:
            entry = self._entry(request)
            return HTMLResponse(self._pages.system(entry, self._run(entry, request)))

    def file(self, request: Request) -> Response:
        """A figure, sound, mesh or table: only what the run's record names."""
        name = request.path_params["file"]
        with self._lock:
            run = self._run(self._entry(request), request)
        if run.directory is None or not any(name in artifact_files(run, a) for a in run.artifacts):
            raise HTTPException(404, "that run has no such file")
        kind = _SHOWN.get(Path(name).suffix.lower())
        return FileResponse(
            run.directory / name,
            media_type=kind or "application/octet-stream",
            filename=name,
            content_disposition_type="inline" if kind else "attachment",
            headers=SANDBOX,
        )

    def asset(self, request: Request) -> Response:
        """A style sheet, script or icon."""
        name = request.url.path.removeprefix("/")
        return Response(self._assets[name], media_type=_ASSETS[Path(name).suffix])

    async def start(self, request: Request) -> Response:
        """The form, and what it sends."""
        if request.method == "POST":
            form = await _form(request)
            return await run_in_threadpool(self._start, form)
        return await run_in_threadpool(self._form_page, request.query_params.get("system", ""))

    def started(self, request: Request) -> Response:
        """A run while it goes on."""
        one = self._one(request)
        return self._page("live.html.jinja", "../", one=one, command=" ".join(["pullback", *one.request.words()]))

    def state(self, request: Request) -> Response:
        """What the page of a run shows, as JSON."""
        one = self._one(request)
        over = one.over  # before the record is read: after the end it does not change any more
        result = one.result()
        progress = result.progress if result is not None else {}
        return JSONResponse(
            {
                "over": over,
                "status": _status(one, result, over),
                "seconds": round(one.seconds, 1),
                "loop": progress.get("loop", ""),
                "step": progress.get("step", 0),
                "steps": progress.get("steps", 0),
                "log": one.log(),
                "found": self._pages.fragment("found.html.jinja", run=result) if result is not None else "",
                "page": _address(result),
            }
        )

    def stop(self, request: Request) -> Response:
        """End a run after its step; at once where that was asked for before."""
        one = self._one(request)
        one.stop()
        return RedirectResponse(f"/started/{one.number}", 303)

    async def problem(self, request: Request, error: Exception) -> Response:
        """A short page that says what was wrong."""
        assert isinstance(error, HTTPException)
        page = self._page("problem.html.jinja", "/", error.status_code, status=error.status_code, message=error.detail)
        page.headers.update(error.headers or {})
        return page

    def _start(self, form: dict[str, str]) -> Response:
        try:
            wanted = parse_request(form)
            check_ready(registry.load(wanted.slug))
            one = self._launcher.start(wanted)
        except UsageError as error:
            return self._form_page(form.get("system", ""), form, str(error), 400)
        except BusyError as error:
            return self._form_page(form.get("system", ""), form, str(error), 409)
        return RedirectResponse(f"/started/{one.number}", 303)

    def _form_page(self, slug: str, form: dict[str, str] | None = None, error: str = "", code: int = 200) -> Response:
        known = registry.slugs()
        if slug and slug not in known and form is None:
            raise HTTPException(404, "there is no system of that name")
        system, reason = None, ""
        if slug in known:
            try:
                system = registry.load(slug)
            except Exception as problem:  # shown: the page says why this system cannot be run here
                reason = f"{slug} cannot be imported: {type(problem).__name__}: {problem}"
        return self._page(
            "start.html.jinja",
            "",
            code,
            slugs=known,
            system=system,
            absent=missing(system.data) if system is not None else [],
            fields=_fields(system) if system is not None else [],
            form=form or {},
            error=error or reason,
            launched=self._launcher.launched,
        )

    def _page(self, template: str, root: str, code: int = 200, **values: Any) -> Response:
        return HTMLResponse(self._pages.fragment(template, root=root, **values), code)

    def _entry(self, request: Request) -> Entry:
        entry = self._store.entry(request.path_params["slug"])
        if entry is None:
            raise HTTPException(404, "there is no system of that name")
        return entry

    def _run(self, entry: Entry, request: Request) -> RunResult:
        run = entry.find(request.path_params["run"])
        if run is None:
            raise HTTPException(404, f"{entry.slug} has no such run")
        return run

    def _one(self, request: Request) -> Launched:
        number = request.path_params["number"]
        one = self._launcher.get(int(number)) if re.fullmatch("[0-9]{1,9}", number) else None
        if one is None:
            raise HTTPException(404, "no such run was started here")
        return one


def _fields(system: registry.System) -> list[dict[str, Any]]:
    """The options of a system as the form shows them."""
    return [
        {
            "name": option.name,
            "help": option.help,
            "limits": option.limits,
            "defaults": {scale: getattr(system.configure(scale), option.name) for scale in SCALES},
            "told": [s for s in SCALES if s == "default" or option.name in system.scales[s]],
            "choices": choices(option.type),
            "editable": is_editable(option.type),
        }
        for option in system.options.values()
    ]


def _status(one: Launched, result: RunResult | None, over: bool) -> str:
    if one.stopping:
        return "stopping"
    if result is not None:
        return result.status
    return "starting" if not over else "failed"


def _address(result: RunResult | None) -> str:
    if result is None or result.directory is None:
        return ""
    return f"/systems/{result.slug}/{result.directory.name}/index.html"


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form; read only as far as a form may reach."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "a form is sent as application/x-www-form-urlencoded")
    body = b""
    try:
        async with asyncio.timeout(_SLOWEST_FORM):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _LARGEST_FORM:
                    raise HTTPException(413, f"the form is larger than {_LARGEST_FORM} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the form took longer than {_SLOWEST_FORM:g} seconds") from None
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except ValueError as error:
        raise HTTPException(400, "the form is not well-formed") from error
    if len({name for name, _ in pairs}) != len(pairs):
        raise HTTPException(400, "a field of the form comes twice")
    return dict(pairs)
