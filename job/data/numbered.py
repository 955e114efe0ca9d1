"""Shards that are numbered: a number that lacks between two others is a shard that was lost on the way."""

import re
from collections.abc import Iterable
from itertools import pairwise

from job.errors import NotFoundError

_SHARD = re.compile(r"(.*?)(\d+)(\.bin)", re.IGNORECASE)


def require_every_shard(place: str, names: Iterable[str]) -> None:
    """Pass when no number lacks among the token shards that were found at `place`; NotFoundError names the first."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            found.setdefault((match[1], match[3]), {})[int(match[2])] = match[2]
    for (before, after), numbers in sorted(found.items()):
        for low, high in pairwise(sorted(numbers)):
            if high != low + 1:
                lost = f"{before}{low + 1:0{len(numbers[low])}}{after}"
                neighbours = f"{before}{numbers[low]}{after} and {before}{numbers[high]}{after}"
                raise NotFoundError(
                    f"data.corpus: {place} has {neighbours}, but no {lost}; to do without it, name the files that are "
                    "to be read"
                )
