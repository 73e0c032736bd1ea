"""From a network in Python to the spec that a bundle records: a class by its name, and its arguments as JSON."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import orjson
from pydantic import TypeAdapter, ValidationError

from abstain.models.errors import ConfigError, clip_repr
from abstain.models.networks.allowed import MODULE_PATTERN
from abstain.models.networks.architectures import MLP, LeNet, LeNetSpec, MLPSpec, NetworkSpec
from abstain.models.networks.nnx_network import is_nnx_class
from abstain.models.networks.specs import ModuleSpec

_WHERE = "module"
_EXPECTED = "a Flax Linen module, its class, package.file:ClassName, or a dict as the table [network] of a config"


def spec_of(module: Any) -> NetworkSpec:
    """Returns the spec of a network.

    Args:
        module: a Linen module; a class of Linen or NNX that needs no arguments; `package.file:ClassName`; a dict with the
            keys of `[network]`; or a spec.

    Raises:
        ConfigError: the class cannot be imported by its name, an argument is no JSON value, or it is something else.
    """
    if isinstance(module, MLPSpec | LeNetSpec | ModuleSpec):
        return module
    if isinstance(module, str):
        return _validated({"kind": "module", "module": module})
    if isinstance(module, Mapping):
        return _validated({"kind": "mlp"} | dict(cast("Mapping[str, Any]", module)))
    if isinstance(module, type) and (issubclass(module, nn.Module) or is_nnx_class(module)):
        return _validated({"kind": "module", "module": _name_of(cast("type[Any]", module))})
    if isinstance(module, MLP):
        return MLPSpec(hidden=module.hidden, activation=cast("Any", module.activation))
    if isinstance(module, LeNet):
        return LeNetSpec(channels=module.channels, hidden=module.hidden, activation=cast("Any", module.activation))
    if isinstance(module, nn.Module):
        return _validated(
            {"kind": "module", "module": _name_of(type(module)), "arguments": _arguments(module)},
        )
    found = clip_repr(module)
    if is_nnx_class(type(module)):
        name = f"{type(module).__module__}:{type(module).__qualname__}"
        fix = f'an NNX module does not keep its arguments: pass {{"kind": "module", "module": "{name}", "arguments": {{…}}}}'
        raise ConfigError(_WHERE, expected=_EXPECTED, found=found, fix=fix)
    raise ConfigError(_WHERE, expected=_EXPECTED, found=found)


def _validated(content: dict[str, Any]) -> NetworkSpec:
    try:
        return TypeAdapter[NetworkSpec](NetworkSpec).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        raise ConfigError(
            f"{_WHERE} {place}".rstrip(), expected=_EXPECTED, found=clip_repr(content), fix=first["msg"]
        ) from error


def _name_of(cls: type[Any]) -> str:
    """Returns `package.file:ClassName`, if the class can be imported by it."""
    name = f"{cls.__module__}:{cls.__qualname__}"
    found: Any = None
    if cls.__module__ != "__main__" and re.fullmatch(MODULE_PATTERN, name):
        try:
            found = getattr(importlib.import_module(cls.__module__), cls.__qualname__, None)
        except ImportError:
            found = None
    if found is not cls:
        raise ConfigError(
            _WHERE,
            expected="a class at the top of a file that can be imported, because a server imports it by its name",
            found=name,
            fix="move the class into a file of its own, and import it from there",
        )
    return name


def _arguments(module: nn.Module) -> dict[str, Any]:
    """Returns the fields of a Linen module that differ from their defaults, as JSON."""
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value: Any = getattr(module, field.name)
        # Linen's own fields are the position of a module within another one.
        if field.name in {"parent", "name"} or not field.init or value is field.default:
            continue
        if isinstance(value, Mapping):
            value = dict(cast("Mapping[str, Any]", value))
        try:
            content = orjson.loads(orjson.dumps(value))
        except TypeError as error:
            raise ConfigError(
                f"{_WHERE}, argument {field.name}",
                expected="a value that JSON holds, because a bundle records it",
                found=clip_repr(value),
                fix="make it the default of the class, or choose it in the class by a name",
            ) from error
        if value != field.default:
            arguments[field.name] = content
    return arguments
