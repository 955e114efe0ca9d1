"""The table of settings: every one of them, told by the comment behind its field."""

from dataclasses import fields

import pytest

from job.config import SECTIONS, Config
from job.config_file import load_config, render_toml
from job.config_table import settings, table_lines

SETTINGS = {setting.name: setting for setting in settings()}


def test_every_setting_is_there():
    """The table has the settings of `config show`, in its order."""
    shown, section = [], ""
    for line in render_toml(load_config("quickstart")).splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        elif line:
            shown.append(section + line.split(" = ")[0])

    assert list(SETTINGS) == shown


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_says_what_it_means(name):
    """Behind each field stands a comment."""
    assert SETTINGS[name].meaning


def test_the_meaning_is_the_comment_behind_the_field():
    """A setting whose field says so is told in these words, its type in those of the error about another."""
    setting = SETTINGS["checkpoint.keep_every"]

    assert setting.meaning == "keep each checkpoint whose step is a multiple, for good"
    assert (setting.takes, setting.default) == ("a whole number or 'none'", "none")


def test_a_table_for_each_section():
    """Sections follow each other, each below its own docstring, a row for each setting."""
    lines = table_lines()

    assert sum(line.startswith("| `") for line in lines) == len(SETTINGS)
    assert [line.split("`")[1] for line in lines if line.startswith("**`")] == list(SECTIONS)
    assert len(SETTINGS) == sum(len(fields(cls)) for cls in SECTIONS.values()) + len(fields(Config)) - len(SECTIONS)


def test_no_cell_is_taken_for_a_tag():
    """What stands in angle brackets is seen."""
    (row,) = [line for line in table_lines() if line.startswith("| `run_uri`")]

    assert r"runs/\<preset>-\<hash>" in row
