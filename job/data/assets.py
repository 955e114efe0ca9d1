"""The public files that an image carries so that it works with no network: found or downloaded, held to their hashes.

    python -m job.data.assets FOLDER

They are looked for in `$GPT_JOB_ASSETS` first; what is not there is downloaded. `MISSING_ASSETS=allow` goes on without
those that cannot be had, which is otherwise an error.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import structlog

from job.data.builtin import TEXTS, Asset, asset_folders, find_asset
from job.data.fetch import ContentCache
from job.data.gpt2_files import MERGES, NUMBERS
from job.errors import JobError

ASSETS = (*TEXTS.values(), MERGES, NUMBERS)
LONGEST = 1 << 24  # bytes

log = structlog.get_logger(__name__)


def collect(assets: Iterable[Asset], folder: Path, missing_allowed: bool) -> list[Asset]:
    """Put the assets into `folder`; returns those that could not be had.

    Raises:
        JobError: One could not be had, and that is not allowed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for asset in assets:
        try:
            _bring(asset, folder / asset.name)
        except JobError as error:
            if not missing_allowed:
                raise
            log.warning("the image will lack this file", name=asset.name, reason=str(error))
            missing.append(asset)
    return missing


def _bring(asset: Asset, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        cache = ContentCache(Path(scratch), LONGEST, _nothing)
        found = find_asset(asset, asset_folders(), _nothing) or cache.fetch_url(asset.url, asset.sha256, ".txt")
        shutil.copyfile(found.path, target)
    target.chmod(0o444)
    log.info("asset", name=asset.name, sha256=asset.sha256)


def _nothing(*_: int) -> None:
    """Nobody waits for a sign of life."""


def main() -> int:
    """Exit code of the error, if there is one."""
    try:
        collect(ASSETS, Path(sys.argv[1]), os.environ.get("MISSING_ASSETS") == "allow")
    except JobError as error:
        sys.stderr.write(
            f"{error}\nGive the build a network or a folder with {', '.join(asset.name for asset in ASSETS)} "
            "(make image ASSETS=DIR); an image without them is built with --build-arg MISSING_ASSETS=allow.\n"
        )
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
