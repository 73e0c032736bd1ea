"""Augmentation: shifts, rotates, thickens and thins images at random, as different hands and scanners do.

augment          changes the rows of every gradient of `map`, `ensemble` and `vi`; not allowed for sampling
transform_rows   changes each calibration row in one way, or not at all

A Markov chain and a curvature need one fixed density; with rows that change from step to step, there is none.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from abstain.models.errors import ConfigError
from abstain.models.prediction.posterior import Model, is_image_shape
from abstain.training.config.config import Config
from abstain.training.config.data import AugmentConfig
from abstain.training.config.methods import METHOD_SETTINGS

Images = Float[Array, "rows height width *channel"]
Augment = Callable[[PRNGKeyArray, Images], Images]
PIECE = 1024
"""The number of rows that `transform_rows` changes at a time."""


def build_augmentation(config: Config, model: Model, x: Num[np.ndarray, "rows ..."]) -> Augment | None:
    """Builds the function that changes every batch of preprocessed rows; None if the config has no augmentation.

    Args:
        x: the raw training rows; their smallest value is the background beyond the images' edges.

    Raises:
        ConfigError: the method or the shape of the inputs does not allow augmentation.
    """
    settings = config.data.augment
    if not settings.changes_rows:
        return None
    if not config.method.allows_augmentation:
        able = [kind for kind, method in METHOD_SETTINGS.items() if method.allows_augmentation]
        raise ConfigError(
            "data.augment",
            expected=f"none for {config.method.kind}, which works on one fixed density of all rows",
            found="rows that change at random",
            fix=f"remove it, or use method.kind = {', '.join(able)}",
        )
    check_images("data.augment", settings, model.feature_shape)
    background, shape = float(x.min()), (1, *model.feature_shape)
    low, step = (
        jnp.broadcast_to(jnp.reshape(jnp.float32(terms), shape if len(terms) > 1 else ()), shape)
        for terms in (model.preprocessing.shift, model.preprocessing.scale)
    )

    def augment_batch(key: PRNGKeyArray, x: Images) -> Images:
        # Standardised features differ in scale from pixel to pixel, so images are moved in data units.
        return (augment(key, x * step + low, settings, background) - low) / step

    return augment_batch


def check_images(where: str, settings: AugmentConfig, shape: tuple[int, ...]) -> None:
    """Refuses rows that are not images, or images smaller than the shift.

    Raises:
        ConfigError: the rows are not images, or are too small; the text names the shape.
    """
    if not is_image_shape(shape):
        expected = "images [height, width] or [height, width, channel]"
        raise ConfigError(where, expected=expected, found=f"rows of shape {shape}", fix="remove it")
    if settings.shift >= min(shape[:2]):
        raise ConfigError(f"{where}.shift", expected=f"less than the images' {min(shape[:2])}", found=settings.shift)


def augment(key: PRNGKeyArray, images: Images, settings: AugmentConfig, background: float) -> Images:
    """Changes each image in every way that the settings switch on, by a uniform random amount within the limits."""
    rows = images.shape[0]
    key_thickness, key_rotation, key_shift = jax.random.split(key, 3)
    if settings.thickness:
        amounts = jax.random.uniform(key_thickness, (rows,), minval=-settings.thickness, maxval=settings.thickness)
        images = thicken(images, amounts, background)
    if settings.rotate:
        degrees = jax.random.uniform(key_rotation, (rows,), minval=-settings.rotate, maxval=settings.rotate)
        images = rotate(images, degrees, background)
    if settings.shift:
        offsets = jax.random.randint(key_shift, (rows, 2), -settings.shift, settings.shift + 1)
        images = shift(images, offsets, background, limit=settings.shift)
    return images


def transform_rows(
    seed: int, images: Num[np.ndarray, "rows ..."], settings: AugmentConfig, where: str = "calibration.augment"
) -> Float[np.ndarray, "rows ..."]:
    """Changes each image in at most one way: shifted, rotated, thickened, thinned, or unchanged.

    For each row, the change is drawn with equal probability from those that the settings switch on, and its amount
    uniformly within the limits. Future rows that are changed in this way are exchangeable with these.

    Args:
        images: `[rows, height, width]` or with channels last, on the scale of the training arrays; the background is their
            smallest value.
        where: the config's key for the settings.

    Raises:
        ConfigError: the rows are not images.
    """
    check_images(where, settings, images.shape[1:])
    limits_by_kind = {
        "shift": settings.shift,
        "rotate": settings.rotate,
        "thick": settings.thickness,
        "thin": settings.thickness,
    }
    kinds = ["none", *(kind for kind, limit in limits_by_kind.items() if limit)]
    rng, rows = np.random.default_rng(seed), len(images)
    kind = np.array(kinds)[rng.integers(len(kinds), size=rows)]
    offsets = rng.integers(-settings.shift, settings.shift, size=(rows, 2), endpoint=True)
    degrees = rng.uniform(-settings.rotate, settings.rotate, rows)
    amounts = rng.uniform(0.0, settings.thickness, rows)
    background = float(images.min())

    changed = images.astype(np.float32)
    for name, change in {
        "shift": lambda part, chosen: shift(part, jnp.asarray(offsets[chosen]), background, limit=settings.shift),
        "rotate": lambda part, chosen: rotate(part, jnp.float32(degrees[chosen]), background),
        "thick": lambda part, chosen: thicken(part, jnp.float32(amounts[chosen]), background),
        "thin": lambda part, chosen: thicken(part, jnp.float32(-amounts[chosen]), background),
    }.items():
        indices = np.flatnonzero(kind == name)
        for chosen in np.split(indices, range(PIECE, len(indices), PIECE)) if indices.size else ():
            changed[chosen] = change(jnp.asarray(changed[chosen]), chosen)
    return changed


def shift(images: Images, offsets: Int[Array, "rows 2"], background: float, *, limit: int) -> Images:
    """Moves images down and right by whole pixels, at most `limit` in each direction."""
    edges = [(limit, limit)] * 2 + [(0, 0)] * (images.ndim - 3)

    def shift_image(image: Array, offset: Array) -> Array:
        padded = jnp.pad(image, edges, constant_values=background)
        first = jnp.concatenate([limit - offset, jnp.zeros(image.ndim - 2, offset.dtype)])
        return jax.lax.dynamic_slice(padded, first, image.shape)

    return jax.vmap(shift_image)(images, offsets)


def rotate(images: Images, degrees: Float[Array, " rows"], background: float) -> Images:
    """Rotates images about their centre, counterclockwise as displayed, with bilinear interpolation."""
    height, width = images.shape[1:3]
    down, right = (jnp.arange(size) - (size - 1) / 2 for size in (height, width))

    def rotate_channel(image: Array, radians: Array) -> Array:
        cos, sin = jnp.cos(radians), jnp.sin(radians)
        rows = cos * down[:, None] + sin * right[None, :] + (height - 1) / 2
        columns = -sin * down[:, None] + cos * right[None, :] + (width - 1) / 2
        return jax.scipy.ndimage.map_coordinates(image, [rows, columns], order=1, mode="constant", cval=background)

    over = rotate_channel if images.ndim == 3 else jax.vmap(rotate_channel, (-1, None), -1)
    return jax.vmap(over)(images, jnp.deg2rad(degrees))


def thicken(images: Images, amounts: Float[Array, " rows"], background: float) -> Images:
    """Makes bright strokes thicker (amounts up to 1) or thinner (down to −1) by parts of a pixel at each edge.

    An amount of 1 is the grey-scale dilation by a 3×3 square, −1 the erosion; between, they are blended with the image.
    """
    amount = amounts.reshape(-1, *[1] * (images.ndim - 1))
    thick, thin = (neighbourhood(images, background, extreme) for extreme in (jnp.maximum, jnp.minimum))
    return images + jnp.maximum(amount, 0) * (thick - images) + jnp.maximum(-amount, 0) * (thin - images)


def neighbourhood(images: Images, background: float, extreme: Callable[[Array, Array], Array]) -> Images:
    """Returns the largest or smallest value in the 3×3 square around each pixel, computed one axis at a time."""
    for axis in (1, 2):
        edges = [(1, 1) if index == axis else (0, 0) for index in range(images.ndim)]
        padded, size = jnp.pad(images, edges, constant_values=background), images.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, first, first + size, axis=axis) for first in (0, 2))
        images = extreme(extreme(before, images), after)
    return images
