"""`Model`: the definition of a model without its parameters. `Posterior`: a model and the draws of its parameters.

Every inference method returns a `Posterior`; later code does not depend on the method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict

from abstain.models.errors import AbstainError, BundleError, clip_repr, convert
from abstain.models.networks.architectures import Network, parameter_shapes
from abstain.models.networks.specs import ModuleSpec, NetworkSpec
from abstain.models.prediction.likelihood_names import LikelihoodName
from abstain.models.prediction.likelihoods import LIKELIHOODS, Likelihood
from abstain.models.prediction.preprocessing import Preprocessing, transformed_shape
from abstain.models.tables.columns import Column
from abstain.models.tables.row_plan import RowPlan, plan_rows

Draws = Any
"""`{"network": Flax parameters, "noise": [draws]}`: numpy leaves with the draws as axis 0; "noise" only if inferred."""


class Model(BaseModel):
    """Network, likelihood and preprocessing, with the shape of a row and the names of features and classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    network: NetworkSpec
    likelihood: LikelihoodName
    preprocessing: Preprocessing = Preprocessing()
    feature_shape: tuple[int, ...]
    feature_names: tuple[str, ...] = ()
    """One name for each feature of a flat row; empty if features have no names (pixels)."""
    class_names: tuple[str, ...] = ()
    """Empty for regression."""
    target_name: str = "y"

    @property
    def likelihood_functions(self) -> Likelihood:
        """The functions of the model's likelihood."""
        return LIKELIHOODS[self.likelihood]

    @property
    def features(self) -> int:
        """The number of features in a row."""
        return math.prod(self.feature_shape)

    @cached_property
    def row_plan(self) -> RowPlan | None:
        """The plan of rows with named values; None if the features have no names, or two have the same name."""
        columns = self.preprocessing.columns or tuple(Column(name=name) for name in self.feature_names)
        return plan_rows(columns, nullable=bool(self.preprocessing.columns))

    def __copy__(self) -> Model:
        """Copies the fields only: `model_copy` may change the columns, for which a cached plan would be wrong."""
        copied = super().__copy__()
        vars(copied).pop("row_plan", None)
        return copied

    @property
    def is_image(self) -> bool:
        """Whether a row is an image: `[height, width]` or `[height, width, channels]`."""
        return is_image_shape(self.feature_shape)

    @property
    def is_pixel_like(self) -> bool:
        """Whether a row is an image with one scale for all pixels, so that its direction has a meaning without its length.

        Tables are excluded: one scale for all their columns may only mean that they are not scaled.
        """
        return self.is_image and len(self.preprocessing.scale) == 1 and self.features > 1

    def allow(self, modules: tuple[str, ...]) -> Model:
        """Returns the model, which may import its network's module if that is among these entries (see `networks.allowed`)."""
        if not isinstance(self.network, ModuleSpec):
            return self
        return self.model_copy(update={"network": self.network.allow(modules)})

    @property
    def module(self) -> Network:
        """The network, for one preprocessed example.

        Raises:
            AbstainError: it is a user's module that was not allowed, or that cannot be built.
        """
        return self.network.build(self.likelihood_functions.outputs(len(self.class_names)))

    def parameter_shapes(self) -> Any:
        """Returns the shapes of one draw, `{"network": …, "noise": …}`, as a tree of `jax.ShapeDtypeStruct`."""
        shapes = {"network": parameter_shapes(self.module, transformed_shape(self.preprocessing, self.feature_shape))}
        if self.likelihood_functions.has_noise:
            shapes["noise"] = jax.ShapeDtypeStruct((), jnp.float32)
        return shapes


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Whether rows of this shape are images: `[height, width]` or `[height, width, channels]`."""
    return len(shape) in {2, 3}


@dataclass(frozen=True)
class Posterior:
    """A model and draws of all its parameters; `draws` has numpy leaves of float32 with the draws as axis 0."""

    model: Model
    draws: Draws

    @cached_property
    def size(self) -> int:
        """The number of draws."""
        return jax.tree.leaves(self.draws)[0].shape[0]


def check_draws(model: Model, draws: Draws, where: str) -> None:
    """Refuses draws that do not fit the model.

    Raises:
        BundleError: a leaf is missing, unexpected, of another shape or dtype, or not finite; or the network cannot be
            built, because its module is not allowed or not installed.
    """
    check_draw_shapes(expected_shapes(model, where), draws, where)
    check_finite_draws(draws, where)


def expected_shapes(model: Model, where: str) -> Any:
    """Returns `model.parameter_shapes()` for a bundle's model.

    Raises:
        BundleError: the network cannot be built, or its module is not allowed or not installed.
    """
    try:
        return model.parameter_shapes()
    except AbstainError as error:
        raise convert(error, BundleError, where) from error
    except Exception as error:  # For impossible sizes JAX raises many types of undocumented errors.
        raise BundleError("network", where=where, found=f"{type(error).__name__}: {clip_repr(str(error))}") from error


def check_draw_shapes(shapes: Any, draws: Any, where: str) -> None:
    """Refuses draws that do not fit the network; leaves only need a shape and a dtype.

    Args:
        shapes: the expected shapes of one draw.

    Raises:
        BundleError: a leaf is missing, unexpected, or of another shape or dtype.
    """
    expected, found = _by_path(shapes), _by_path(draws)
    if set(expected) != set(found):
        raise BundleError(
            "parameters do not fit the network", where=where, expected=sorted(expected), found=sorted(found)
        )
    sizes = {leaf.shape[:1] for leaf in found.values()}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        raise BundleError("draws", where=where, expected="one number of draws, at least 1", found=sorted(sizes))
    for path, leaf in found.items():
        shape = expected[path].shape
        if leaf.shape[1:] != shape or leaf.dtype != np.float32:
            raise BundleError(
                path,
                where=where,
                expected=f"float32 [draws, {_comma(shape)}]",
                found=f"{leaf.dtype} [{_comma(leaf.shape)}]",
            )


def check_finite_draws(draws: Draws, where: str) -> None:
    """Refuses draws that are not finite.

    Raises:
        BundleError: names the leaf.
    """
    for path, leaf in _by_path(draws).items():
        if not np.isfinite(leaf).all():
            raise BundleError(path, where=where, expected="finite numbers", found="NaN or an infinity")


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = cast("list[tuple[Any, Any]]", jax.tree.leaves_with_path(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _comma(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
