"""The reference of the settings holds every key of the config's classes, and docs/settings.md is what it prints."""

from typing import get_args

from pydantic import BaseModel

from abstain.training.config.config import Config
from abstain.training.config.methods import VIConfig
from abstain.training.config.reference import Setting, attribute_docstrings, format_settings, settings_tables
from tests.helpers.paths import PROJECT


def test_the_document_is_what_the_command_prints(run):
    """`abstain settings > docs/settings.md` writes it anew."""
    assert run("settings") == (0, format_settings(), "")
    assert (PROJECT / "docs" / "settings.md").read_text("utf-8") == format_settings()


def test_every_key_has_a_type_and_a_meaning():
    """A key without a docstring in its class would have an empty cell."""
    cells = [(table.name, setting) for table in settings_tables() for setting in table.settings]
    assert [(name, setting.key) for name, setting in cells if not all(setting)] == []
    assert len(cells) > 100


def keys_of(annotation, prefix):
    """Every key below a table, by walking the annotations: an independent, slower way to the same list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {
            key
            for name, field in annotation.model_fields.items()
            for key in {f"{prefix}.{name}", *keys_of(field.annotation, f"{prefix}.{name}")}
        }
    return {key for part in get_args(annotation) for key in keys_of(part, prefix)}


def test_every_key_of_the_classes_is_there():
    """Also those of kinds and of tables inside of tables."""
    listed = set()
    for table in settings_tables():
        place = table.name.split("`")[1].strip("[]") if table.name.startswith("`") else ""
        listed |= {f"{place}.{setting.key}".replace(".NAME", "").strip(".") for setting in table.settings}
    tables = {table.name.split("`")[1].strip("[]") for table in settings_tables() if table.name.startswith("`")}
    expected = {key.removeprefix(".") for key in keys_of(Config, "")}
    assert {key for key in expected - listed if key not in tables and not key.endswith("kind")} == set()
    assert listed - expected == set()


def test_types_defaults_and_limits_in_words():
    """Known keys, written out by hand."""
    by_name = {table.name: {setting.key: setting for setting in table.settings} for table in settings_tables()}
    assert by_name["`[calibration]`"]["novelty_share"].type == "number above 0 and at most 1"
    assert by_name["`[data]`"]["calibration_size"].type == "whole number at least 1, or number above 0 and below 1"
    assert by_name["`[data]`"]["inputs"][1:3] == ('`"standardize"`, `"range"`, `"none"`', '`"standardize"`')
    vi = by_name['`[method]` with `kind = "vi"`']
    assert vi["steps"] == Setting("steps", "whole number above 0", "`10_000`", attribute_docstrings(VIConfig)["steps"])
    assert "NAME:VERSION" in vi["start_from"].meaning
