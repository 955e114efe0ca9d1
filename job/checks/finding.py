"""What a preflight check found, and what to do about it."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from job.errors import AccessError, ConfigError, DataError, JobError, NotFoundError, StorageError

Level = Literal["ok", "warning", "error"]
_WORST_FIRST = tuple(  # a retry repeats all but the last two
    error.exit_code for error in (ConfigError, AccessError, NotFoundError, DataError, StorageError, JobError)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One answer of the preflight.

    Args:
        about: What was looked at.
        said: What was found: what, where, expected, got.
        advice: What to do about it; empty where nothing is to be done.
        code: The exit code that the job would end with; 0 unless it is an error.
        facts: Numbers behind it, as JSON values; sizes in bytes.
    """

    about: str
    level: Level = "ok"
    said: str
    advice: str = ""
    code: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def problem(about: str, error: JobError, advice: str = "") -> Finding:
    """The finding that an error of the job's is."""
    said = str(error)
    return Finding(about=about, level="error", said=said, advice=advice or _ADVICE[type(error)], code=error.exit_code)


_ADVICE: dict[type[JobError], str] = {
    ConfigError: "change the setting that is named",
    AccessError: "give the job credentials (AWS_*, or the folder's permissions) that allow this",
    NotFoundError: "name what is there, or put it there",
    DataError: "mend or replace what is named",
    StorageError: "see that it answers from here, and has room: address, network, proxy, CA (AWS_CA_BUNDLE), disk",
    JobError: "",
}


def exit_code(findings: Iterable[Finding]) -> int:
    """The code of the worst finding: one that a retry repeats before one that may pass; 0 when none is an error."""
    codes = {finding.code for finding in findings if finding.level == "error"}
    unknown = codes - set(_WORST_FIRST)
    return next((code for code in _WORST_FIRST if code in codes), min(unknown, default=os.EX_OK))


def size(count: float) -> str:
    """Bytes as people read them: 512 bytes, 1.5 GB."""
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= power:
            return f"{count / power:.3g} {unit}"
    return f"{count:.0f} bytes"
