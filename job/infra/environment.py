"""Facts about this process that records keep for information: versions, and who runs it."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

_PACKAGES = ("gpt-pretrain-job", "torch", "numpy", "tiktoken", "safetensors")
_OWNERS = ("JOBSET_NAME", "TRAINJOB_NAME", "JOB_NAME", "JOB_UID", "POD_NAME", "HOSTNAME")


def code_facts(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Versions of what computes, and the revision and image where the environment names them."""
    return {
        "git": environ.get("GPT_JOB_REVISION"),
        "image": environ.get("GPT_JOB_IMAGE"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def owner_facts(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Names under which a cluster knows this process."""
    return {name.lower(): environ[name] for name in _OWNERS if environ.get(name)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
