"""`abstain sign` and `abstain verify`: signatures of versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from abstain.command_line import DEFAULT_STORE, JsonOption, ModelArgument, StoreOption, print_json

commands = typer.Typer()


@commands.command(epilog="Example: `abstain sign digits:3 --key private.pem`")
def sign(
    model: ModelArgument,
    key: Annotated[Path, typer.Option("--key", help="The private key of an elliptic curve, in PEM.")],
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", help="Its first line is the key's password; default: a prompt."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Verify the files of a version and sign it: `model.sig` in its folder proves who made it."""
    from abstain.models.bundles import store as stores  # noqa: PLC0415
    from abstain.models.bundles.bundle import sign_published  # noqa: PLC0415
    from abstain.models.bundles.signatures import check_private_key, is_encrypted, read_password  # noqa: PLC0415

    name, version = stores.resolve(store, model)
    password = read_password(password_file) if password_file else None
    if password is None and is_encrypted(key):
        password = str(typer.prompt(f"Password of {key}", hide_input=True, err=True)).encode()
    # Checked first, because reading the files may take long.
    check_private_key(key, password)
    signature = sign_published(store, name, version, key, password)
    if as_json:
        print_json({"model": name, "version": version, "key": str(key), "signature": str(signature)})
    else:
        typer.echo(f"{name}:{version} is signed: {signature}")


@commands.command(epilog="Example: `abstain verify digits:3 --key public.pem`")
def verify(
    model: ModelArgument,
    key: Annotated[Path, typer.Option("--key", help="The public key, or a folder of them (*.pem).")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check every file of a version, and that it is signed with the key."""
    from abstain.models.bundles import store as stores  # noqa: PLC0415
    from abstain.models.bundles.bundle import verify_published  # noqa: PLC0415
    from abstain.models.bundles.signatures import read_public_keys  # noqa: PLC0415

    trusted = read_public_keys(key)
    name, version = stores.resolve(store, model)
    manifest, signer = verify_published(store, name, version, trusted)
    files = len(manifest.files) + 1
    if as_json:
        print_json({"model": name, "version": version, "key": str(signer), "files": files, "digest": manifest.digest})
    else:
        typer.echo(f"{name}:{version} is signed by {signer}; its {files} files are unchanged")
