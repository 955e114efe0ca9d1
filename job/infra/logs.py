"""Log lines on stderr: for a person on a terminal, as JSON elsewhere, without secrets in either."""

import logging
import math
import os
import re
import sys
import textwrap
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import quote

import structlog
from structlog.typing import Processor

LogFormat = Literal["auto", "console", "json"]

HIDDEN = "[redacted]"
SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GPT_JOB_API_KEY",
)
MIN_SECRET = 6  # characters; hiding a shorter value would hide ordinary words
QUIET = ("boto3", "botocore", "s3transfer", "urllib3")

_NAMES = (
    r"aws_secret_access_key|aws_session_token|x-amz-(?:security-token|signature|credential)|gpt_job_api_key|password"
)
_SECRET_NAME = re.compile(rf"(?i:{_NAMES}|authorization)")
_RULES = (  # repeats that could start anywhere are bounded: a long line must not take long
    (re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)\w{8,}"), HIDDEN),
    (re.compile(r"(\w{1,32}://)[^\s/\"'<>]*@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(\w{1,32}://[^\s?#\"'<>]{0,2000})\?[^\s#\"'<>]*"), rf"\1?{HIDDEN}"),
    (re.compile(rf"(?i)\b((?:{_NAMES})\W{{0,2}}[=:][ \t]*(?:b?[\"'])?)[^\s\"',;&}}]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(authorization\W{0,2}[=:][ \t]*(?:b?[\"'])?)[^\"'\r\n]+"), rf"\1{HIDDEN}"),
)


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` without credentials: the values of secrets in `environ`, AWS keys, URL passwords and queries."""
    secrets = {environ.get(name, "") for name in SECRETS}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= MIN_SECRET:
            text = text.replace(secret, HIDDEN).replace(quote(secret, safe=""), HIDDEN)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact_event(_: object, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """A log event whose values, at any depth, carry no credentials and are all JSON."""
    return {name: _clean(value, name) for name, value in event.items()}


def configure_logging(fmt: LogFormat = "auto", level: str = "info") -> None:
    """Send structlog's lines of `level` and above, and other libraries' warnings, to stderr in one format.

    Args:
        fmt: `auto` is `console` on a terminal and `json` elsewhere.
    """
    on_terminal = sys.stderr.isatty()
    console = fmt == "console" or (fmt == "auto" and on_terminal)
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ" if console else "iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact_event,
        _console_renderer(colors=on_terminal and not os.environ.get("NO_COLOR")) if console else _json_line,
    ]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *shared],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Stderr,
        cache_logger_on_first_use=False,
    )
    _configure_libraries(shared)


def _configure_libraries(shared: list[Processor]) -> None:
    """Route the standard library's loggers, from WARNING on, through the same processors."""
    handler = _StderrHandler()
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name],
            processors=[strip, *shared],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


class _Stderr:
    """Writes lines to the stderr of the moment: while a progress bar is live, that is the bar's."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):  # a closed stderr ends no run
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = msg


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _Stderr().msg(self.format(record))


def _console_renderer(*, colors: bool) -> Processor:
    """Lines for people: facts beside the event, and texts of several lines below it, as they are."""
    render = structlog.dev.ConsoleRenderer(
        0,  # no column for the event: lines stay within 80
        colors=colors,
        sort_keys=False,
        pad_level=False,
        exception_formatter=structlog.dev.plain_traceback,  # the pretty one shows variables, which may be secrets
    )

    def line(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        long = [name for name, value in event.items() if isinstance(value, str) and "\n" in value]
        texts = [textwrap.indent(str(event.pop(name)).rstrip("\n"), "    ") for name in long if name != "exception"]
        return "\n".join([render(logger, method, event), *texts])

    return line


def _json_line(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    line = structlog.processors.JSONRenderer(ensure_ascii=False)(logger, method, {**first, **event})
    return str(line)


def _clean(value: Any, name: str = "") -> Any:
    if _SECRET_NAME.fullmatch(name):
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(key): _clean(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(inner) for inner in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return redact(str(value))
