"""Web application of the page: its addresses, the types of its requests, and its errors as JSON.

FastAPI checks the types of requests. `guard.py` stands in front of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Annotated, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from miniclip.demo.batching import BusyError
from miniclip.demo.guard import Access, Application, Guard, RefusalError
from miniclip.demo.limits import too_many_bytes
from miniclip.demo.service import Answer, ImageKey, MissingError, Search, Service
from miniclip.search.filters import Filter
from miniclip.utils.system_errors import system_message

T = TypeVar("T")

TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "icons.svg": "image/svg+xml",
}
UPLOADS = "/api/uploads"


class Body(BaseModel):
    """A request in JSON; fields that do not exist are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ImageBody(Body):
    """An image of the index, or an uploaded one."""

    item: int | None = None
    upload: Annotated[str | None, Field(max_length=100)] = None

    def key(self) -> ImageKey:
        """Return the service's form."""
        return ImageKey(self.item, self.upload)


class SearchBody(Body):
    """A search."""

    text: Annotated[str, Field(max_length=1000)] = ""
    image: ImageBody | None = None
    count: Annotated[int, Field(ge=1)] = 60
    paths: Annotated[str, Field(max_length=300)] = ""
    after: Annotated[str, Field(max_length=40)] = ""
    before: Annotated[str, Field(max_length=40)] = ""
    threshold: Annotated[float | None, Field(ge=-1, le=1)] = None

    def where(self) -> Filter | None:
        """Return the filter, or None without one; the last day belongs to the range.

        Raises:
            ValueError: a date is not one, or the range is empty.
        """
        if not (self.paths or self.after or self.before):
            return None
        try:
            end = datetime.fromisoformat(self.before) + timedelta(days=1) if self.before else None
        except (ValueError, OverflowError):  # no date, or the last day of all
            raise ValueError(f"before: found {self.before!r}; expected a date such as 2024-05-01") from None
        return Filter(self.paths or (), after=self.after or None, before=end)


class LabelsBody(Body):
    """Labels for an image."""

    image: ImageBody
    labels: list[Annotated[str, Field(max_length=300)]]
    template: Annotated[str, Field(max_length=300)]


class ExplainBody(Body):
    """A text to explain in an image."""

    item: int
    text: Annotated[str, Field(max_length=1000)]


def create_app(service: Service, access: Access) -> Application:
    """Return the ASGI application of a service, behind its guard."""
    app = FastAPI(title="miniclip", openapi_url=None)  # the pages of the documentation load code of another site
    _add_pages(app)
    _add_answers(app, service)
    _add_errors(app, service)

    def body_bytes(path: str) -> int:
        return service.limits.upload_bytes if path == UPLOADS else service.limits.body_bytes

    return Guard(app, access, body_bytes, _read_page("locked.html"))


def _add_pages(app: FastAPI) -> None:
    """Add the files of the page, by name; no path leads to another file."""
    for name, kind in TYPES.items():
        app.add_api_route("/" if name == "index.html" else f"/{name}", _page_route(name, kind), methods=["GET"])


def _page_route(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    content = _read_page(name)

    async def send() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return send


def _add_answers(app: FastAPI, service: Service) -> None:
    """Add the addresses of the service."""

    @app.get("/api/about")
    async def about() -> Answer:
        return service.about()

    @app.post("/api/search")
    async def search(body: SearchBody) -> Answer:
        image = body.image.key() if body.image else None
        count = min(body.count, service.limits.hits)
        return await _wait(service.search(Search(body.text, image, count, body.where(), body.threshold)))

    @app.post(UPLOADS)
    async def upload(request: Request) -> Answer:
        return await _wait(service.upload(await request.body()))

    @app.post("/api/labels")
    async def labels(body: LabelsBody) -> Answer:
        return await _wait(service.labels(body.image.key(), body.labels, body.template))

    @app.post("/api/explain")
    async def explain(body: ExplainBody) -> Answer:
        return await _wait(service.explain(body.item, body.text))

    @app.get("/api/images/{item}")
    async def image(item: int, side: Annotated[int, Query()]) -> Response:
        content = await _wait(service.thumbnail(item, side))
        # the address has the content's digest, so it never has another content
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(content, media_type="image/jpeg", headers=headers)


def _add_errors(app: FastAPI, service: Service) -> None:
    """Answer each error as JSON with one message."""

    @app.exception_handler(RequestValidationError)
    async def wrong_type(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return _error(400, f"{place}: {first['msg'].lower()}" if place else first["msg"].lower())

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail).lower())

    @app.exception_handler(RefusalError)
    async def refused(request: Request, error: RefusalError) -> Response:
        too_large = request.url.path == UPLOADS and error.status == 413
        return _error(error.status, too_many_bytes(service.limits) if too_large else error.message)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:  # the connection is closed
        return _error(400, "the request ended before its body did")

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> Response:
        return _error(503, str(error), {"Retry-After": "1"})

    @app.exception_handler(MissingError)
    async def missing(_: Request, error: MissingError) -> Response:
        return _error(404, str(error))

    @app.exception_handler(ValueError)
    @app.exception_handler(OSError)
    async def wrong(_: Request, error: Exception) -> Response:  # DataError too
        message = system_message(error) if isinstance(error, OSError) else str(error)
        return _error(400, " ".join(message.split()))

    @app.exception_handler(Exception)
    async def internal(_: Request, error: Exception) -> Response:
        return _error(500, "this is an error in miniclip; its traceback is in the terminal: please report it")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, {"Cache-Control": "no-store", **(headers or {})})


async def _wait(future: Future[T]) -> T:
    """Wait for a future of a thread; several requests may share it, so it is not cancelled with one."""
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        if future.cancelled():
            raise BusyError("the server is stopping") from None
        raise


def _read_page(name: str) -> bytes:
    return files("miniclip.demo").joinpath("page", name).read_bytes()
