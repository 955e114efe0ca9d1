"""Requests that are not answered, and how a client is told: in OpenAI's shape."""

from collections.abc import Mapping
from typing import Any

BAD_REQUEST, UNAVAILABLE = 400, 503
_TYPES = {401: "authentication_error", 408: "timeout_error", 500: "server_error", 503: "unavailable_error"}


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: Of HTTP: 4xx when the request is at fault, 503 when another moment may do.
        param: The field of the request that is at fault.
        code: One word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def plain(self) -> dict[str, Any]:
        """The body of the answer, as JSON values."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def unavailable(message: str, code: str, seconds: int) -> Refusal:
    """A refusal that another moment may not meet with; `seconds` is when to ask again."""
    return Refusal(UNAVAILABLE, message, code=code, headers={"Retry-After": str(seconds)})
