"""What processes that train together can all compute with, of what each of their machines would."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog
import torch

from job.errors import ConfigError
from job.infra.device import Numerics
from job.infra.ranks import Ranks

log = structlog.get_logger(__name__)


def agree(own: Numerics, ranks: Ranks) -> Numerics:
    """The numerics of one rank, but for what another one has not.

    Raises:
        ConfigError: They have not one device and one torch.
    """
    return in_common(own, ranks.gather(_said(own)))


def _said(numerics: Numerics) -> dict[str, Any]:
    versions = {"device": numerics.device, "torch": torch.__version__}
    return {**versions, "precision": numerics.precision, "compile": numerics.compile}


def in_common(own: Numerics, of_ranks: Sequence[Mapping[str, Any]]) -> Numerics:
    """`own`, but for what one of the ranks has not; raises as `agree` does."""
    for name in ("device", "torch"):
        values = [each[name] for each in of_ranks]
        if len(set(values)) > 1:
            said = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
            raise ConfigError(f"processes that train together need one {name}: {said}")
    alike = len({each["precision"] for each in of_ranks}) == 1
    found = replace(
        own, precision=own.precision if alike else "fp32", compile=all(each["compile"] for each in of_ranks)
    )
    if any(_said(found) != each for each in of_ranks):
        taken = {"precision": found.precision, "compile": found.compile}
        log.warning("the machines of this run differ: taken is what all of them have", **taken)
    return found
