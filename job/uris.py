"""What a URI names: a folder of this machine, by its path or as file:///FOLDER, or a place elsewhere."""

import os
from pathlib import Path, PurePath
from urllib.parse import unquote


def local_folder(uri: str) -> Path | None:
    """The folder that `uri` names; None when it names something else."""
    scheme, slash, rest = uri.partition(":/")  # not "://": s3:/bucket is a slip, not a folder
    if not slash or "/" in scheme:
        return Path(uri).expanduser()
    return Path(unquote(rest[1:])) if scheme == "file" and rest.startswith("//") else None


def lies_in(uri: str, other: str) -> bool:
    """Whether what `uri` names is, or is inside, what `other` names; links are not followed."""
    one, its = (
        PurePath(uri) if folder is None else PurePath(os.path.abspath(folder))  # noqa: PTH100 - without its ..
        for uri, folder in ((uri, local_folder(uri)), (other, local_folder(other)))
    )
    return one.is_relative_to(its)
