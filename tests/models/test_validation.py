"""What pydantic refuses, in our words."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from abstain.models.errors import BundleError, ConfigError
from abstain.models.validation import Fault, dotted, first_fault, refuse


class Section(BaseModel):
    """A table without other keys than its own."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Warm(Section):
    """Within both methods; called as one of them is."""

    steps: PositiveInt = 1


class Slow(Section):
    """A method that has a key of another method's name."""

    kind: Literal["slow"] = "slow"
    samples: PositiveInt = 10
    fast: Warm = Warm()


class Fast(Section):
    """A method."""

    kind: Literal["fast"] = "fast"
    steps: PositiveInt = 10


class Layer(Section):
    """Of the values of a dict."""

    scale: float = 1.0


class Whole(Section):
    """All there is."""

    name: str
    method: Annotated[Slow | Fast, Field(discriminator="kind")] = Slow()
    either: Layer | Warm | None = None
    size: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] = 1
    layers: dict[str, Layer] = {}
    widths: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = ()
    stack: Annotated[tuple[Layer, Warm], Field(strict=False)] | None = None
    names: dict[Annotated[str, Field(pattern="^[a-z]+$")], int] = {}


def error_of(content: object) -> ValidationError:
    """What pydantic raises."""
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(content)
    return caught.value


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"size": "x"}, Fault("size", False, "a valid integer", "'x'")),
        ({"widths": [1, 0]}, Fault("widths.1", False, "a number greater than 0", "0")),
        ({"method": {"kind": "fast", "steps": 0}}, Fault("method.steps", False, "a number greater than 0", "0")),
        (
            {"method": {"kind": "slow", "fast": {"steps": 0}}},
            Fault("method.fast.steps", False, "a number greater than 0", "0"),
        ),
        ({"either": {"scale": "x"}}, Fault("either.scale", False, "a valid number", "'x'")),
        (
            {"layers": {"*.bias": {"scale": "x"}}},
            Fault('layers."*.bias".scale', False, "a valid number", "'x'"),
        ),
        ({"stack": [{}, {"steps": 0}]}, Fault("stack.1.steps", False, "a number greater than 0", "0")),
        (
            {"method": {"kind": "fats"}},
            Fault("method.kind", False, "one of slow, fast", "fats", "did you mean 'fast'?"),
        ),
        ({"method": {"steps": 1}}, Fault("method.kind", False, "a value", None, missing=True)),
        ({"names": {"A": 1}}, Fault("names.A", False, "a string that matches pattern '^[a-z]+$'", "'A'")),
    ],
)
def test_a_value_is_named_by_the_path_that_its_writer_knows(content, expected):
    """Tables, places and quoted keys; neither the kind of a method nor the member of a union is part of it."""
    assert first_fault(error_of({"name": "a"} | content), Whole) == expected


@pytest.mark.parametrize(
    ("content", "key", "known", "nearest"),
    [
        ({"nmae": 1}, "nmae", "either, layers, method, name, names, size, stack, widths", "name"),
        ({"method": {"kind": "slow", "sample": 1}}, "method.sample", "fast, kind, samples", "samples"),
        ({"method": {"kind": "fast", "samples": 1}}, "method.samples", "kind, steps", None),
        ({"method": {"kind": "slow", "fast": {"stpes": 1}}}, "method.fast.stpes", "steps", "steps"),
        ({"layers": {"a": {"scales": 1}}}, "layers.a.scales", "scale", "scale"),
        ({"stack": [{}, {"step": 1}]}, "stack.1.step", "steps", "steps"),
    ],
)
def test_an_unknown_key_is_named_with_those_of_its_own_table_and_the_nearest(content, key, known, nearest):
    """Of the method that was chosen, and of no other; nothing is near where no key is like it."""
    assert first_fault(error_of({"name": "a"} | content), Whole) == Fault(
        key, True, f"one of {known}", None, f"did you mean {nearest!r}?" if nearest else None
    )


def test_the_errors_text_says_what_where_expected_found_and_the_fix():
    """In one sentence, as every error of abstain does."""
    error = refuse(error_of({"name": "a", "size": "x"}), ConfigError, Whole, where="a.toml", fix="mend it")
    assert type(error) is ConfigError
    assert str(error) == "a.toml: size: expected a valid integer, found 'x'; mend it"
    unknown = refuse(error_of({"name": "a", "siez": 1}), BundleError, Whole, where="a.toml", fix="mend it")
    assert type(unknown) is BundleError
    assert str(unknown) == (
        "a.toml: unknown key 'siez': expected one of either, layers, method, name, names, size, stack, widths; "
        "did you mean 'size'?; mend it"
    )


def test_a_missing_key_shows_no_table():
    """The table that it is missing from may be long, and says nothing."""
    error = refuse(error_of({"size": 3}), ConfigError, Whole, where="a.toml")
    assert str(error) == "a.toml: name: the key is missing"


def test_the_whole_has_the_name_it_is_given_and_keys_as_well():
    """Where no key is at fault, and where the reader has other names for keys."""
    assert str(refuse(error_of([]), ConfigError, Whole, whole="is no table")).startswith("is no table: expected ")
    named = refuse(error_of({"name": 3}), ConfigError, Whole, named=lambda key: f"ABSTAIN_{key.upper()}")
    assert str(named).startswith("ABSTAIN_NAME: expected a valid string, found 3")


def test_long_values_are_cut():
    """They would drown the message."""
    assert len(str(refuse(error_of({"name": [1] * 1000}), ConfigError, Whole))) < 130


def test_parts_with_other_signs_are_quoted():
    """Letters, digits, `_` and `-` are plain, as in TOML."""
    assert dotted(["a-b", 0, "c.d", "e f"]) == 'a-b.0."c.d"."e f"'
