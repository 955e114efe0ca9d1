"""The termination message: one line that Kubernetes shows for a pod that has ended."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from job.infra.logs import redact

DEFAULT_PATH = "/dev/termination-log"
REASON_BYTES, CHECKPOINT_BYTES = 3072, 768  # of JSON; with the rest below the 4096 that Kubernetes keeps


def write_termination(
    code: int,
    reason: str,
    step: int | None,
    val_loss: float | None,
    checkpoint: str | None,
    environ: Mapping[str, str],
) -> None:
    """Write how the process ends to `$TERMINATION_LOG`; nothing when that cannot be written.

    The default, /dev/termination-log, is written only where it exists: kubelet puts it there.

    Args:
        val_loss: Nats per token; not finite becomes null.
        environ: Names the file, and the secrets that the reason must not show.
    """
    named = environ.get("TERMINATION_LOG")
    path = Path(named or DEFAULT_PATH)
    if named is None and not path.exists():
        return
    facts = {
        "code": code,
        "reason": _cut(redact(reason, environ), REASON_BYTES),
        "step": step,
        "val_loss": val_loss if val_loss is not None and math.isfinite(val_loss) else None,
        "checkpoint": _cut(redact(checkpoint, environ), CHECKPOINT_BYTES) if checkpoint else None,
    }
    with suppress(OSError):
        path.write_bytes(_json(facts) + b"\n")


def _cut(text: str, limit: int) -> str:
    """`text`, without its middle where its JSON would take more than `limit` bytes."""
    cut, keep = text, min(len(text), limit)
    while len(_json(cut)) > limit:
        cut = f"{text[: keep // 2]} ... {text[len(text) - keep // 2 :]}"
        keep = 3 * keep // 4
    return cut


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")
