"""Pages from their templates: one style for all of them, and every value escaped."""

from typing import Any

from job.infra.progress import short
from job.report.canvas import COLOURS


def render(template: str, **values: Any) -> bytes:
    """A page that needs no other file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - only who renders waits for it

    environment = Environment(
        loader=PackageLoader("job.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short
    return environment.get_template(template).render(colours=COLOURS, **values).encode("utf-8", "replace")
