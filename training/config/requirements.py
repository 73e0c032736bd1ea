"""Lower bounds of the memory of a config: a fit that cannot succeed is refused at once.

Each bound counts only one array that must be in memory as a whole, so a config within all bounds may still need too much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import jax
import psutil

from abstain.models.bundles.plausible import batch_memory_claim
from abstain.models.errors import ConfigError
from abstain.models.networks.specs import LeNetSpec, MLPSpec, ModuleSpec, NetworkSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.config import Config
from abstain.training.config.methods import ChainSettings, MethodSettings, Optimisation

FLOAT32 = 4


class Need(NamedTuple):
    """A key of the config, its value, and a lower bound of the bytes that it needs."""

    key: str
    value: object
    bytes: int


class Network(NamedTuple):
    """The key that sets a network's size, its value, and a lower bound of its parameters."""

    key: str
    value: object
    parameters: int

    def copies(self, key: str, count: int) -> Need:
        """Returns the need of `count` copies of the parameters, under the key of the larger factor."""
        needed = FLOAT32 * self.parameters * count
        if self.parameters > count:
            return Need(self.key, f"{self.value} with {key} = {count}", needed)
        return Need(key, count, needed)


def memory_of_machine() -> int:
    """Returns the physical memory in bytes."""
    return psutil.virtual_memory().total


def check_needs(config: Config, parameters: int, rows: int) -> None:
    """Refuses a config that needs more memory than the machine has.

    Args:
        parameters: a lower bound of the network's parameters.
        rows: a lower bound of the training rows.

    Raises:
        ConfigError: a key needs more; the text names it and the bytes that it needs.
    """
    limit = memory_of_machine()
    for need in needs(config, parameters, rows):
        if need.bytes > limit:
            raise ConfigError(
                need.key,
                where=f"config of {config.name}",
                expected=f"a value that needs at most this machine's memory of {limit:,} bytes",
                found=f"{str(need.value)[:200]}, which needs {need.bytes:,} bytes or more",
                fix="lower it",
            )


def check_servable(config: Config, model: Model) -> None:
    """Refuses a model that could be fitted but not loaded, because predicting a batch needs too much memory.

    Raises:
        ConfigError: the memory is too large, and the text names it; or draws would hold running statistics.
    """
    if isinstance(config.network, ModuleSpec) and config.network.running_statistics:
        raise ConfigError(
            "network.running_statistics",
            expected="none: inference finds parameters alone",
            found="true",
            fix="leave it out; an import sets it for networks that are already trained",
        )
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
    """Yields the needs of each key; arguments as in `check_needs`."""
    method = config.method
    network = Network("network", config.network.kind, parameters)
    if isinstance(config.network, MLPSpec) and config.network.hidden:
        network = Network("network.hidden", list(config.network.hidden), parameters)
    # The parameters and their gradient.
    yield Need(network.key, network.value, 2 * FLOAT32 * parameters)
    if method.samples_normal:
        yield network.copies("draws", config.draws)
    yield from _method_needs(method, "method", network, rows)


def _method_needs(settings: MethodSettings, key: str, network: Network, rows: int) -> Iterator[Need]:
    """Yields the needs of the keys in a method's table."""
    for name, count in settings.parameter_copies.items():
        yield network.copies(f"{key}.{name}", count)
    if isinstance(settings, Optimisation):
        yield from _optimisation_needs(settings, key, rows)
    if isinstance(settings, ChainSettings):
        yield from _chain_needs(settings, key, network)
    if settings.first_search:
        table, search = settings.first_search
        yield from _method_needs(search, f"{key}.{table}", network, rows)


def _optimisation_needs(settings: Optimisation, key: str, rows: int) -> Iterator[Need]:
    """Yields the memory for the losses of all steps or, if larger, for the row indices of a block's minibatches."""
    batch = settings.batch_size if settings.batch_size < rows else 0
    block = math.ceil(settings.steps / settings.reports)
    yield Need(f"{key}.steps", settings.steps, FLOAT32 * max(settings.steps, block * batch))


def _chain_needs(settings: ChainSettings, key: str, network: Network) -> Iterator[Need]:
    """Yields the memory for traces of all samples and transitions, and for a dense mass matrix."""
    yield Need(f"{key}.warmup", settings.warmup, 8 * settings.warmup)
    energies = FLOAT32 * settings.chains * settings.samples
    yield Need(f"{key}.samples", settings.samples, energies)
    yield Need(f"{key}.thin", settings.thin, energies * settings.thin)
    if settings.dense_mass_matrix:
        yield network.copies(f"{key}.mass_matrix", network.parameters)


def count_parameters(model: Model) -> int:
    """Returns the number of parameters of network and noise."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.parameter_shapes()))


def least_parameters(network: NetworkSpec) -> int:
    """Returns a lower bound of a network's parameters that does not depend on its inputs and outputs."""
    if isinstance(network, ModuleSpec):
        return 1
    dense = sum(network.hidden) + sum(one * other for one, other in pairwise(network.hidden))
    return max(dense + (25 * math.prod(network.channels) if isinstance(network, LeNetSpec) else 0), 1)
