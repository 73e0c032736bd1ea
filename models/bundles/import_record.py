"""The record of a manifest for draws that were not fitted here but imported, and checks of its values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from abstain.models.bundles.plausible import Claim, within

ImportKind = Literal["arrays", "arviz", "mcmc", "netcdf", "npz", "orbax", "safetensors", "svi"]
"""Arrays in memory; ArviZ; NumPyro's `MCMC` or an SVI result; or files: netCDF, .npz, Orbax checkpoints, .safetensors."""
MOST_SOURCES = 10_000
MOST_FOUND = 10**9
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class ImportedFile(BaseModel):
    """One source: the name of a file or of a checkpoint's folder, without its path, and its SHA-256.

    That of a folder covers the paths, relative to it, and the contents of all its files, in the order of the paths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=255)]
    digest: Digest


class ImportRecord(BaseModel):
    """Where imported draws came from.

    Attributes:
        kind: the kind of source.
        sources: the files; empty if the draws were passed in memory.
        digest: the SHA-256 of the draws of this bundle: of name, shape and float32 bytes of each array, ordered by name.
        found: the number of draws in the source, of which the bundle may keep fewer.
        chains: the number of chains; 0 if the source does not separate chains.
        settings: the table `[posterior]` of the import; for people only, code must not depend on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ImportKind
    sources: tuple[ImportedFile, ...] = ()
    digest: Digest
    found: int
    chains: int = 0
    settings: dict[str, JsonValue] = {}


def import_claims(record: ImportRecord | None, draws: int) -> Iterator[Claim]:
    """Yields the plausibility checks of the record of a bundle with some number of draws; Pydantic has checked its types."""
    if record is None:
        return
    yield within("imported.found", record.found, draws, MOST_FOUND)
    yield within("imported.chains", record.chains, 0, record.found)
    yield Claim(
        "imported.sources", len(record.sources) <= MOST_SOURCES, f"at most {MOST_SOURCES:,}", len(record.sources)
    )
    for source in record.sources:
        plain = source.name not in {".", ".."} and not {"/", "\\", "\0"} & {*source.name}
        yield Claim("imported.sources", plain, "names without a path", source.name)
