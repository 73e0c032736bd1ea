"""What a config needs at the least, in bytes of memory: what surely cannot work is refused before it begins.

Each bound counts one array that the fit holds as a whole at some time, and no more; a config within all of them may still
need more memory than there is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import jax

from abstain.models.bundles.plausible import batch_memory_claim
from abstain.models.errors import ConfigError
from abstain.models.networks.architectures import LeNetSpec, MLPSpec, NetworkSpec
from abstain.models.networks.user_module import ModuleSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.config import Config
from abstain.training.config.methods import ChainSettings, MethodSettings, Optimisation

FLOAT32 = 4


class Need(NamedTuple):
    """A key of the config, its value, and the bytes that it needs at the least."""

    key: str
    value: object
    bytes: int


class Network(NamedTuple):
    """The key that a network's size is set by, its value, and how many parameters it has at the least."""

    key: str
    value: object
    parameters: int

    def copies(self, key: str, count: int) -> Need:
        """What so many sets of parameters need; the key is the network's where that is the larger factor."""
        needed = FLOAT32 * self.parameters * count
        if self.parameters > count:
            return Need(self.key, f"{self.value} with {key} = {count}", needed)
        return Need(key, count, needed)


def memory_of_machine() -> int:
    """Physical memory, bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_needs(config: Config, parameters: int, rows: int) -> None:
    """Refuses a config that needs more memory than the machine has.

    Args:
        parameters: of the network, at the least.
        rows: of the training part, at the least.

    Raises:
        ConfigError: naming the key, and what it needs.
    """
    limit = memory_of_machine()
    for need in needs(config, parameters, rows):
        if need.bytes > limit:
            raise ConfigError(
                need.key,
                where=f"config of {config.name}",
                expected=f"what needs no more than this machine's memory of {limit:,} bytes",
                found=f"{str(need.value)[:200]}, which needs {need.bytes:,} bytes or more",
                fix="lower it",
            )


def check_servable(config: Config, model: Model) -> None:
    """Refuses what could be fitted, but would be refused when it is loaded: a batch of its answers takes too much memory.

    Raises:
        ConfigError: naming what it would take.
    """
    claim = batch_memory_claim(model, config.draws, {})
    if not claim.holds:
        raise ConfigError(
            "draws",
            where=f"config of {config.name}",
            expected=f"a batch that takes {claim.expected} when it is served",
            found=str(claim.found),
            fix="take fewer draws, or a smaller network",
        )


def needs(config: Config, parameters: int, rows: int) -> Iterator[Need]:
    """What each key needs; arguments as of `check_needs`."""
    method = config.method
    network = Network("network", config.network.kind, parameters)
    if isinstance(config.network, MLPSpec) and config.network.hidden:
        network = Network("network.hidden", list(config.network.hidden), parameters)
    # The parameters and their gradient.
    yield Need(network.key, network.value, 2 * FLOAT32 * parameters)
    if method.samples_normal:
        yield network.copies("draws", config.draws)
    yield from _of_method(method, "method", network, rows)


def _of_method(settings: MethodSettings, key: str, network: Network, rows: int) -> Iterator[Need]:
    """What the keys of a method's table need."""
    for name, count in settings.parameter_copies.items():
        yield network.copies(f"{key}.{name}", count)
    if isinstance(settings, Optimisation):
        yield from _of_descent(settings, key, rows)
    if isinstance(settings, ChainSettings):
        yield from _of_chains(settings, key, network)
    if settings.first_search:
        table, search = settings.first_search
        yield from _of_method(search, f"{key}.{table}", network, rows)


def _of_descent(settings: Optimisation, key: str, rows: int) -> Iterator[Need]:
    """The losses of all steps; and, as int32, which rows every step of a block takes, if it does not take all."""
    batch = settings.batch_size if settings.batch_size < rows else 0
    block = math.ceil(settings.steps / settings.reports)
    yield Need(f"{key}.steps", settings.steps, FLOAT32 * max(settings.steps, block * batch))


def _of_chains(settings: ChainSettings, key: str, network: Network) -> Iterator[Need]:
    """The log densities of all samples, the seconds of all steps, the energies of all transitions; a dense mass matrix."""
    yield Need(f"{key}.warmup", settings.warmup, 8 * settings.warmup)
    energies = FLOAT32 * settings.chains * settings.samples
    yield Need(f"{key}.samples", settings.samples, energies)
    yield Need(f"{key}.thin", settings.thin, energies * settings.thin)
    if settings.dense_mass_matrix:
        yield network.copies(f"{key}.mass_matrix", network.parameters)


def count_parameters(model: Model) -> int:
    """Of the network and the noise."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.parameter_shapes()))


def least_parameters(network: NetworkSpec) -> int:
    """Parameters that a network has whatever its inputs and outputs are; known before its shapes are traced."""
    if isinstance(network, ModuleSpec):
        return 1
    dense = sum(network.hidden) + sum(one * other for one, other in pairwise(network.hidden))
    return max(dense + (25 * math.prod(network.channels) if isinstance(network, LeNetSpec) else 0), 1)
