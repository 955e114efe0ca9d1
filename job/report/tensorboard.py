"""A run's events as TensorBoard reads them, through torch's own writer: while it trains, or afterwards."""

import tempfile
from pathlib import Path
from typing import Any

from job.errors import ConfigError
from job.report.reading import Event, finite, read_events

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
        folder: Where; each process adds a file of its own.
        from_step: What earlier files say of this step and later ones holds no more: it is done again.

    Raises:
        ConfigError: The `tensorboard` package is not installed.
    """

    def __init__(self, folder: Path, from_step: int = 0) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - slow, and seldom asked for

        self._writer: Any = SummaryWriter(str(folder), purge_step=from_step or None)

    def add(self, event: Event) -> None:
        """Write what an event measured, if anything."""
        step, moment = event["step"], event.get("time")
        for name, tag in _TAGS.get(event["event"], {}).items():
            if finite(value := event.get(name)):
                self._writer.add_scalar(tag, value, step, walltime=moment)
        if event["event"] == "sampled":
            text = f"{event.get('prompt', '')}{event.get('text', '')}"
            self._writer.add_text("sample", "    " + text.replace("\n", "\n    "), step, walltime=moment)  # as it is

    def flush(self) -> None:
        """See that everything is in the file."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and end the file."""
        self._writer.close()


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
        (written,) = Path(folder).iterdir()
        return {f"tensorboard/{EXPORTED}": written.read_bytes()}
