"""What the server allows: every limit of it, as values that cannot be wrong."""

from dataclasses import dataclass, fields
from typing import Literal

from job.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    """How the server listens and what a client may ask of it.

    Args:
        max_batch: Continuations that are computed at a time, each with its part of the cache's memory.
        max_queue: Continuations that may wait; more are refused with 503.
        fixed_width: Compute every step at full width, so that company changes no token, not even by rounding.
        dtype: Of weights; fp32 is the model itself.
        max_choices: Most `n` of a request.
        max_logprobs: Most `logprobs` of a request.
        max_stops, max_stop_characters: Most stop strings of a request, and the length of each.
        max_body_bytes, max_header_bytes: Of a request.
        max_connections: Open at a time; the next is refused.
        header_seconds: From the first byte of a request, or the connection, to the end of its headers.
        body_seconds: From there to the end of the body, however steadily bytes come.
        request_seconds: From there to the end of the answer.
        write_seconds: How long a client may not read what is sent to it.
        keep_alive_seconds: Between two requests of a connection.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str | None = None
    dtype: Literal["fp32", "bf16", "auto"] = "fp32"
    fixed_width: bool = False
    max_batch: int = 8
    max_queue: int = 16
    max_choices: int = 8
    max_logprobs: int = 5
    max_stops: int = 16
    max_stop_characters: int = 128
    max_body_bytes: int = 256 << 10
    max_header_bytes: int = 16 << 10
    max_connections: int = 500
    header_seconds: float = 5.0
    body_seconds: float = 10.0
    request_seconds: float = 300.0
    write_seconds: float = 30.0
    keep_alive_seconds: float = 5.0

    def __post_init__(self) -> None:
        least = {"port": 0, "max_queue": 0, "max_logprobs": 0, "max_stops": 0}
        numbers = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        problems = [
            f"{_flag(name)} {value} must be at least {least.get(name, 1)}"
            for name, value in numbers.items()
            if type(value) is int and value < least.get(name, 1)
        ]
        problems += [
            f"{_flag(name)} {value} must be greater than 0"
            for name, value in numbers.items()
            if type(value) is float and not value > 0
        ]
        if self.port > 65535:
            problems.append(f"--port {self.port} must be at most 65535")
        if problems:
            raise ConfigError(*problems)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
