"""Every setting as a table, read off `config.py`: the comment behind a field is what it means, here and there."""

import ast
import inspect
import io
import json
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, get_type_hints

from job import config
from job.config import SECTIONS, Config
from job.config_file import expected

_CLASSES: Mapping[str, type[Any]] = {"": Config, **SECTIONS}
_LONGEST_DEFAULT = 60  # characters; a longer one is only counted


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as a person is told of it.

    Args:
        name: As in TOML and `--set`.
        takes: What it may be, in the words of the error about anything else.
        default: As TOML; empty where it is made from the others.
        meaning: The comment behind its field.
    """

    name: str
    takes: str
    default: str
    meaning: str

    def plain(self) -> dict[str, str]:
        """As JSON values."""
        return asdict(self)


def settings() -> list[Setting]:
    """All settings in the order of `config.py`, those of no section first."""
    meanings = _comments(inspect.getsource(config))
    return [setting for section, cls in _CLASSES.items() for setting in _settings(section, cls, meanings)]


def table_lines() -> list[str]:
    """A Markdown table for each section, under what the section says of itself."""
    lines: list[str] = []
    meanings = _comments(inspect.getsource(config))
    for section, cls in _CLASSES.items():
        title = f"**`{section}`**: {_first_line(cls)}" if section else "**Of no section**:"
        lines += ["", title, "", "| setting | takes | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{setting.name}` | {_cell(setting.takes)} | {_code(setting.default)} | {_cell(setting.meaning)} |"
            for setting in _settings(section, cls, meanings)
        ]
    return lines[1:]


def _code(default: str) -> str:
    return f"`{default}`" if default else ""


def _cell(text: str) -> str:
    """Text in which Markdown sees no tags and no columns."""
    return text.replace("<", "\\<").replace("|", "\\|").replace("*", "\\*")


def _settings(section: str, cls: type[Any], meanings: dict[tuple[str, str], str]) -> Iterator[Setting]:
    hints, prefix = get_type_hints(cls), f"{section}." if section else ""
    for entry in fields(cls):
        if entry.name not in SECTIONS or prefix:
            meaning = meanings.get((cls.__name__, entry.name), "")
            yield Setting(f"{prefix}{entry.name}", expected(hints[entry.name]), _default(entry.default), meaning)


def _default(value: Any) -> str:
    if value is MISSING:
        return ""
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    if len(text) > _LONGEST_DEFAULT:
        return f"[{len(value)}, see config show]"
    return "none" if value is None else text


def _comments(source: str) -> dict[tuple[str, str], str]:
    """(class, field) -> the comment at the end of the field's line."""
    said = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return {
        (cls.name, field.target.id): said[field.lineno]
        for cls in ast.parse(source).body
        if isinstance(cls, ast.ClassDef)
        for field in cls.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.lineno in said
    }


def _first_line(cls: type[Any]) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]
