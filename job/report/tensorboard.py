"""A run's events as TensorBoard reads them, through torch's own writer: while it trains, or afterwards."""

import tempfile
from pathlib import Path
from typing import Any

from job.errors import ConfigError
from job.report.reading import Event, finite, read_events

FOLDER = "tensorboard"
EXPORTED = "events.out.tfevents.0000000000.exported"  # always the same name: a later export replaces it
_TAGS = {
    "step": {
        "loss": "loss/batch",
        "learning_rate": "training/learning_rate",
        "gradient_norm": "training/gradient_norm",
        "tokens_per_second": "speed/tokens_per_second",
        "mfu": "speed/mfu",
    },
    "evaluated": {
        "train_loss": "loss/train",
        "val_loss": "loss/validation",
        "perplexity": "evaluation/perplexity",
        "bits_per_byte": "evaluation/bits_per_byte",
    },
    "tested": {"loss": "loss/test"},
}


class TensorBoard:
    """Writes events into a folder of TensorBoard's files.

    Args:
        folder: Where; each beginning adds a file of its own.

    Raises:
        ConfigError: The `tensorboard` package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        require_tensorboard()
        self._folder = folder
        self._writer: Any = None

    def begin(self, from_step: int = 0) -> None:
        """Begin a file; what earlier ones say of `from_step` and later holds no more, because it is done again."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - slow, and seldom asked for

        self.close()
        self._writer = SummaryWriter(str(self._folder), purge_step=from_step or None)

    def add(self, event: Event) -> None:
        """Write what an event measured, if anything."""
        if self._writer is None:
            self.begin()
        step, moment = event["step"], event.get("time")
        for name, tag in _TAGS.get(event["event"], {}).items():
            if finite(value := event.get(name)):
                self._writer.add_scalar(tag, value, step, walltime=moment)
        if event["event"] == "sampled":
            text = f"{event.get('prompt', '')}{event.get('text', '')}"
            self._writer.add_text("sample", "    " + text.replace("\n", "\n    "), step, walltime=moment)  # as it is

    def files(self) -> dict[str, bytes]:
        """What has been written so far, by key below the run."""
        if self._writer is not None:
            self._writer.flush()
        found = sorted(self._folder.iterdir()) if self._folder.exists() else []
        return {f"{FOLDER}/{path.name}": path.read_bytes() for path in found}

    def close(self) -> None:
        """Write what is left and end the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def require_tensorboard() -> None:
    """Refuse to go on where the package is missing."""
    try:
        import tensorboard  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415, F401
    except ModuleNotFoundError:
        raise ConfigError(
            "TensorBoard files were asked for, but its package is not installed: "
            "pip install 'gpt-pretrain-job[tensorboard]'"
        ) from None


def export(content: bytes, where: str) -> dict[str, bytes]:
    """The file of TensorBoard, by name, that holds a whole event log. DataError when it is none."""
    events, _ = read_events(content, where)
    with tempfile.TemporaryDirectory(prefix="gpt-job-") as folder:
        board = TensorBoard(Path(folder))
        for event in events:
            board.add(event)
        board.close()
        return {f"{FOLDER}/{EXPORTED}": b"".join(board.files().values())}
