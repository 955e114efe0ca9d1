"""What the server answers under which path."""

import hmac
from dataclasses import dataclass
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from job.infra.health import Pulse
from job.serving.completions import Completions
from job.serving.engine import Engine
from job.serving.metrics import ServingMetrics
from job.serving.openapi import description
from job.serving.refusal import Refusal
from job.serving.settings import ServingConfig

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """What is known about the server and its model.

    Args:
        name: Of the model, as clients know it.
        created: When it was made known, in Unix seconds.
        stall_seconds: With work and without a step for longer than this, `/healthz` answers 503.
    """

    engine: Engine
    name: str
    created: int
    metrics: ServingMetrics
    pulse: Pulse
    stall_seconds: float

    async def models(self, _: Request) -> Response:
        """All models: the one."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """One model by its name."""
        asked = request.path_params["name"]
        if asked != self.name:
            message = f"the model {asked!r} does not exist here; the one that does is {self.name!r}"
            raise Refusal(404, message, "model", "model_not_found")
        return JSONResponse(self._card())

    async def health(self, _: Request) -> Response:
        """Whether the engine works; a reason to start the server anew when not."""
        still = self.pulse.seconds_since()
        if self.engine.state == "failed":
            return PlainTextResponse("the engine has failed\n", 503)
        if still > self.stall_seconds and (self.engine.outstanding or self.engine.state == "loading"):
            return PlainTextResponse(f"nothing has moved for {still:.0f} s (limit {self.stall_seconds:g} s)\n", 503)
        return PlainTextResponse("ok\n")

    async def ready(self, _: Request) -> Response:
        """Whether requests are answered."""
        if self.engine.state == "ready":
            return PlainTextResponse("ok\n")
        return PlainTextResponse(f"{self.engine.state}\n", 503)

    async def exposition(self, _: Request) -> Response:
        """All metrics."""
        return Response(generate_latest(self.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _card(self) -> dict[str, Any]:
        length = self.engine.model.context_length if self.engine.model else None
        facts = {"id": self.name, "object": "model", "created": self.created, "owned_by": "gpt-job"}
        return {**facts, "max_model_len": length}


def build_app(pages: Pages, limits: ServingConfig, key: str | None) -> ASGIApp:
    """The application.

    Args:
        key: What clients must show; None: nothing.
    """
    published = description(pages.name, limits, with_key=key is not None)

    async def openapi(_: Request) -> Response:
        return JSONResponse(published)

    routes = [
        Route("/v1/completions", Completions(pages.engine, pages.name, limits, pages.metrics), methods=["POST"]),
        Route("/v1/models", pages.models),
        Route("/v1/models/{name:path}", pages.model),
        Route("/healthz", pages.health),
        Route("/health", pages.health),  # where guidellm and other clients of vLLM look
        Route("/readyz", pages.ready),
        Route("/metrics", pages.exposition),
        Route("/openapi.json", openapi),
    ]
    guard = [] if key is None else [Middleware(KeyGuard, key=key, metrics=pages.metrics)]
    handlers: Any = {Refusal: _refused, HTTPException: _not_here, Exception: _bug}
    app = Starlette(routes=routes, middleware=guard, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


class KeyGuard:
    """Lets only those to /v1 who show the key; the comparison takes as long for every wrong one."""

    def __init__(self, app: ASGIApp, key: str, metrics: ServingMetrics) -> None:
        self._app, self._expected, self._metrics = app, f"Bearer {key}".encode(), metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            shown = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(shown, self._expected):
                self._metrics.ended("unauthorized")
                refusal = Refusal(
                    401,
                    "the API key is missing or wrong; expected is the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await _answer(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _refused(_: Request, refusal: Exception) -> Response:
    if not isinstance(refusal, Refusal):
        raise refusal
    return _answer(refusal)


async def _not_here(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    headers = error.headers if isinstance(error, HTTPException) else None
    what = f"{request.method} {request.url.path[:200]}"
    message = f"{what}: this path has other methods" if status == 405 else f"{what}: there is nothing here"
    return _answer(Refusal(status, message, headers=headers))


async def _bug(_: Request, error: Exception) -> Response:
    log.error("bug", exc_info=error)
    return _answer(Refusal(500, "the server has a bug; its log says more", code="bug"))


def _answer(refusal: Refusal) -> Response:
    return JSONResponse(refusal.plain(), refusal.status, refusal.headers)
