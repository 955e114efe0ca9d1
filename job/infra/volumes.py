"""Whether a run's folder outlives the container it is in: asked in the image, where a lost one would start over."""

import re
from collections.abc import Mapping
from pathlib import Path

from job.errors import ConfigError
from job.uris import local_folder

IMAGE_MARK = "GPT_JOB_IMAGE"  # set in the image, and nowhere else
MOUNTS = Path("/proc/self/mountinfo")
IN_MEMORY = {"tmpfs", "ramfs"}


def require_kept(run_uri: str, environ: Mapping[str, str], mounts: Path = MOUNTS) -> None:
    """Refuse a local run that would be gone with its container, so that a second start cannot silently begin at step 0.

    A folder counts as kept when it is on a mount that is neither the container's own root nor in memory. Whether that
    mount outlives the container cannot be seen from inside: an anonymous volume or an emptyDir passes.

    Raises:
        ConfigError: This is the image, and the run's folder is not kept.
    """
    folder = local_folder(run_uri)
    if IMAGE_MARK not in environ or folder is None:
        return
    place = folder.resolve()
    mount, kind = _mount_of(place, mounts.read_text())
    if mount != Path("/") and kind not in IN_MEMORY:
        return
    where = f"in memory ({kind} at {mount})" if kind in IN_MEMORY else "in the container's own file system"
    raise ConfigError(
        f"run_uri={run_uri}: {place} is {where}, not on a mounted volume. It would be gone with this container, "
        "and the next start would begin at step 0. Mount a volume (docker run -v gpt-runs:/runs ...), name a bucket "
        "(--set run_uri=s3://BUCKET/PREFIX), or say --ephemeral if nothing has to be kept"
    )


def _mount_of(place: Path, mountinfo: str) -> tuple[Path, str]:
    """Mount point and file system type of what holds `place`; the last of several mounts on one point counts."""
    found = Path("/"), ""
    for line in mountinfo.splitlines():
        fields, _, source = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4]))
        if place.is_relative_to(point) and len(point.parts) >= len(found[0].parts):
            found = point, source.split()[0]
    return found
