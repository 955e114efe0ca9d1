"""Pretraining of GPT language models as a job; in Python, `job.load_model(uri)` gives a model that it left behind."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from job.model.gpt import GPT


def load_model(uri: str, checkpoint: str = "best", device: str = "cpu") -> "GPT":
    """The model at `uri` alone, in evaluation mode.

    Args:
        uri: A run, an export, a folder of weights, an address of one of these, or a name such as gpt2:124M.
        checkpoint: Of a run: best, last or a step.
        device: cpu, cuda, mps or auto.

    Raises:
        job.errors.JobError: It is not there, or not whole; the class says which.
    """
    from job.config_file import load_config  # noqa: PLC0415 - `import job` loads neither this nor torch
    from job.training.pretrained import load_any  # noqa: PLC0415

    return load_any(load_config(overrides=[f"runtime.device={device}"]).config, uri, checkpoint).model
