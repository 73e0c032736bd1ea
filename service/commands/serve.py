"""`abstain serve`: checks the store and the settings, then runs the service with BentoML."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from abstain.command_line import DEFAULT_STORE, AnyStoreOption
from abstain.models.bundles.shortfalls import texts

if TYPE_CHECKING:
    from abstain.models.bundles.remote.url import RemoteURL
    from abstain.models.bundles.signatures import TrustedKeys
    from abstain.service.settings import Settings

commands = typer.Typer()


@commands.command(epilog="Example: `abstain serve --port 3000 --workers 2`")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
    workers: Annotated[int, typer.Option(min=1, envvar="ABSTAIN_WORKERS", help="The number of workers.")] = 1,
    require_sound: Annotated[
        bool,
        typer.Option(
            "--require-sound",
            envvar="ABSTAIN_REQUIRE_SOUND",
            help="Refuse versions that failed publication checks, labelled or not.",
        ),
    ] = False,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", envvar="ABSTAIN_KEYS", help="A file of API keys; requests then need one of them."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", envvar="ABSTAIN_INSECURE", help="Allow to listen beyond loopback without API keys."),
    ] = False,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert", envvar="ABSTAIN_TLS_CERT", help="A certificate in PEM; the server then uses only TLS."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", envvar="ABSTAIN_TLS_KEY", help="Its private key.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", envvar="ABSTAIN_QUIET", help="Print only the log: no progress of the start.")
    ] = False,
    store: AnyStoreOption = DEFAULT_STORE,
) -> None:
    """Serve the store's models over HTTP, with BentoML, in the foreground."""
    from abstain.models.bundles.signatures import read_trusted  # noqa: PLC0415
    from abstain.service.access.startup_checks import check_access  # noqa: PLC0415
    from abstain.service.process import leave_address, make_run_folder  # noqa: PLC0415
    from abstain.service.settings import check_address, read_settings  # noqa: PLC0415

    if bool(tls_cert) != bool(tls_key):
        missing, present = ("--tls-key", "--tls-cert") if tls_cert else ("--tls-cert", "--tls-key")
        raise typer.BadParameter(f"expected a file, because {present} has one, found none", param_hint=missing)
    options = {"KEYS": keys or "", "INSECURE": int(insecure), "TLS_CERT": tls_cert or "", "TLS_KEY": tls_key or ""}
    os.environ |= {f"ABSTAIN_{name}": str(value) for name, value in options.items()}
    settings = read_settings({**os.environ, "ABSTAIN_STORE": str(store)})
    check_address(settings, host)
    check_access(settings)
    trusted, follows = read_trusted(settings.trusted_keys), bool(settings.refresh_seconds)
    if not isinstance(settings.store, Path):
        _fill_mirror(settings.store, settings.folder, signatures=bool(trusted), quiet=quiet)
    served = _check_store(settings.folder, trusted, require_sound, follows=follows)
    _check_port(host, port)
    address = f"{'https' if settings.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"
    if not quiet:
        sys.stderr.write(
            f"abstain: loading {', '.join(served) or 'nothing'}; address {address}; {_describe_access(settings)}\n"
            f"abstain: starting {'1 worker' if workers == 1 else f'{workers} workers'}; this takes some seconds\n"
        )
        sys.stderr.flush()
    # BentoML changes to its working folder before it imports the service, so that relative paths would be wrong.
    os.environ |= {f"ABSTAIN_{name.upper()}": str(value) for name, value in settings if isinstance(value, Path)}
    os.environ |= {
        "ABSTAIN_STORE": str(settings.store),
        "ABSTAIN_WORKERS": str(workers),
        "ABSTAIN_REQUIRE_SOUND": str(int(require_sound)),
        "ABSTAIN_QUIET": str(int(quiet)),
        "ABSTAIN_TRUSTED_KEYS": ",".join(map(str, settings.trusted_keys)),
    }
    run_folder = make_run_folder()
    leave_address(run_folder, address)
    _run_bentoml(host, port, run_folder)


def _describe_access(settings: Settings) -> str:
    """Describes in a few words who may send requests."""
    access = f"keys of {settings.keys}" if settings.keys else "no keys"
    return access + (f", tokens of {settings.oidc_issuer}" if settings.oidc_issuer else "")


def _run_bentoml(host: str, port: int, run_folder: Path) -> NoReturn:
    """Replaces this process by BentoML, which serves `abstain.service.app` and reads its settings from the environment."""
    # BentoML imports from its working folder: an empty one, because a user's folder may hold modules with common names.
    empty = run_folder / "empty"
    empty.mkdir()
    # -P: otherwise Python would import modules from the current folder, and so run any code in it.
    bentoml = [sys.executable, "-P", "-m", "bentoml", "serve", "abstain.service.app:Abstain"]
    address = ["--host", host, "--port", str(port), "--working-dir", str(empty)]
    os.execv(sys.executable, [*bentoml, *address])


def _fill_mirror(store: RemoteURL, folder: Path, *, signatures: bool, quiet: bool) -> None:
    """Copies what a store elsewhere asks to be served into a folder; prints what could not be copied.

    Raises:
        ConfigError: the library or the credentials are missing; or the store cannot be read, and the folder has no models.
    """
    from abstain.models.bundles.remote.mirror import Mirror  # noqa: PLC0415
    from abstain.models.bundles.remote.objects import open_objects  # noqa: PLC0415
    from abstain.models.bundles.store import model_names  # noqa: PLC0415
    from abstain.models.errors import ConfigError  # noqa: PLC0415

    if not quiet:
        sys.stderr.write(f"abstain: copying what {store} asks for into {folder}\n")
        sys.stderr.flush()
    mirror = Mirror(open_objects(store), folder, signatures=signatures)
    try:
        mirror.settle()
        for (name, version), fault in sorted(mirror.faults.items()):
            sys.stderr.write(f"abstain: {name}:{version}: {fault}\n")
        if mirror.why and not model_names(folder):
            raise ConfigError(
                "the store cannot be read, and nothing was copied from it before",
                where=str(store),
                found=mirror.reason,
                fix="check the address, the credentials and the network",
            )
    finally:
        mirror.close()


def _check_store(store: Path, trusted: TrustedKeys | None, require_sound: bool, *, follows: bool) -> list[str]:
    """Returns the references of all versions that can be served; prints why others cannot.

    Args:
        follows: whether the server follows the store, which may then be empty.

    Raises:
        ConfigError: no version can be served.
    """
    from abstain.models.errors import ConfigError  # noqa: PLC0415

    served, faults = _check_versions(store, trusted, require_sound)
    if not served and not faults and follows and store.is_dir():
        sys.stderr.write(f"abstain: {store} has no models yet; the first one is served when it is published\n")
    elif not served:
        raise ConfigError(
            "no version to serve",
            where=str(store),
            found="; ".join(faults) or ("no models" if store.is_dir() else "no such folder"),
            fix="point its labels at another version (abstain rollback MODEL, or abstain label MODEL:VERSION stable)"
            if faults
            else "publish a model with abstain fit, or choose another folder with --store",
        )
    for fault in faults:
        sys.stderr.write(f"abstain: {fault}\n")
    return served


def _check_versions(store: Path, trusted: TrustedKeys | None, require_sound: bool) -> tuple[list[str], list[str]]:
    """Returns the references of all versions that can be served, and the errors of the other versions."""
    from abstain.models.bundles import store as stores  # noqa: PLC0415
    from abstain.models.bundles.bundle import read_published  # noqa: PLC0415
    from abstain.models.bundles.manifest import verify_files  # noqa: PLC0415
    from abstain.models.errors import AbstainError  # noqa: PLC0415

    served: list[str] = []
    faults: list[str] = []
    for name in stores.model_names(store):
        try:
            versions = stores.served_versions(store, name)
        except AbstainError as error:
            faults.append(str(error))
            continue
        for version in versions:
            try:
                manifest = read_published(store, name, version, trusted)
                verify_files(store / name / str(version), manifest)
            except AbstainError as error:
                faults.append(str(error))
                continue
            if require_sound and manifest.shortfalls:
                reasons = "; ".join(texts(manifest.shortfalls))
                faults.append(f"{name}:{version} is refused: it failed publication checks: {reasons}")
            else:
                served.append(f"{name}:{version}")
    return served, faults


def _check_port(host: str, port: int) -> None:
    """Refuses an address that the server cannot listen on, with one line; BentoML would print thirty."""
    import socket  # noqa: PLC0415

    from abstain.models.errors import ConfigError  # noqa: PLC0415

    try:
        (family, socket_type, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, socket_type, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            "cannot listen", where=f"{host}:{port}", found=error.strerror, fix="choose another --port or --host"
        ) from error
