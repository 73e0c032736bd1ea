"""The `abstain` command: parses, calls one function, prints.

Training's commands join by an entry point (`abstain.commands` in pyproject.toml), so that nothing here imports
training. Progress and logs go to stderr, results to stdout. Exit code 0: done; 1: the work failed; 2: wrong usage.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, cast

import typer

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="abstain",
    help="A model server that knows when to say: I don't know.",
    context_settings=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="ABSTAIN_STORE", help="The folder of models.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="name, name:version or name@label")]
DEFAULT_STORE = Path("artifacts")


def main() -> None:
    """The console command: runs `app`, and turns errors into messages and exit codes."""
    from abstain.models.errors import AbstainError  # noqa: PLC0415

    try:
        for point in entry_points(group="abstain.commands"):
            point.load()(app)
        app()
    except AbstainError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.stderr.write("abstain: stopped\n")
        sys.exit(130)


@app.command(epilog="Example: `abstain models --store artifacts`")
def models(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List all models of the store: their versions and labels."""
    from abstain.models import store as stores  # noqa: PLC0415
    from abstain.models.bundle import read_published  # noqa: PLC0415
    from abstain.models.errors import AbstainError  # noqa: PLC0415

    listed: list[dict[str, Any]] = []
    for name in stores.model_names(store):
        labels, fault = dict[str, int](), None
        try:
            labels = stores.read_labels(store, name).labels
        except AbstainError as error:
            fault = str(error)
        versions: list[dict[str, Any]] = []
        for version in stores.versions(store, name):
            pointing = sorted(label for label, target in labels.items() if target == version)
            entry: dict[str, Any] = {"version": version, "labels": pointing}
            try:
                manifest = read_published(store, name, version)
                entry |= {
                    "method": manifest.method.kind,
                    "draws": manifest.draws,
                    "created": manifest.created,
                    "sound": not manifest.shortfalls,
                    "shortfalls": list(manifest.shortfalls),
                    "why": fault,
                }
            except AbstainError as error:
                unknown = dict.fromkeys(("method", "draws", "created", "sound"))
                entry |= {**unknown, "shortfalls": [], "why": str(error)}
            versions.append(entry)
        listed.append({"name": name, "versions": versions})
    if as_json:
        _print_json({"models": listed})
        return
    _table(
        ["model", "labels", "method", "draws", "sound", "created"],
        [
            [
                f"{model['name']}:{entry['version']}",
                ", ".join(entry["labels"]),
                entry["why"] or entry["method"],
                entry["draws"],
                None if entry["sound"] is None else "yes" if entry["sound"] else "no",
                entry["created"],
            ]
            for model in listed
            for entry in model["versions"]
        ],
        empty=f"no models in {store}; publish one with abstain fit",
    )


@app.command(epilog="Example: `abstain show digits@stable`")
def show(model: ModelArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show the manifest and the diagnostics of one version, its files verified."""
    from abstain.models import store as stores  # noqa: PLC0415
    from abstain.models.bundle import read_published, verify_files  # noqa: PLC0415

    name, version = stores.resolve(store, model)
    manifest = read_published(store, name, version)
    verify_files(store / name / str(version), manifest)
    content = manifest.model_dump(mode="json")
    if as_json:
        _print_json(content)
        return
    content["diagnostics"] = {
        key: value for key, value in content["diagnostics"].items() if key not in {"loss", "reports", "trace"}
    }
    content["metrics"].pop("reliability", None)
    content["files"] = f"{len(content['files'])} files, all as written"
    told = stores.read_labels(store, name).labels
    content["labels"] = [label for label, target in told.items() if target == version]
    # What one comes to know first: whether it is served, may be relied on, is good, and when it says no.
    first = ("labels", "shortfalls", "notes", "metrics", "calibration", "method", "draws", "data")
    _table(["", f"{name}:{version}"], _flat_rows({key: content.pop(key) for key in first} | content))


@app.command(epilog="Example: `abstain label digits:3 stable`")
def label(
    model: Annotated[str, typer.Argument(metavar="MODEL:VERSION")],
    label: Annotated[str, typer.Argument(metavar="LABEL", help="stable, canary, …")],
    force: Annotated[bool, typer.Option("--force", help="Even where the fit fell short.")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Point a label at a version; `stable` is refused to one whose fit fell short."""
    from abstain.models import store as stores  # noqa: PLC0415
    from abstain.models.bundle import check_gate, read_published  # noqa: PLC0415

    name, version = stores.resolve(store, model)
    if label == stores.STABLE and not force:
        check_gate(read_published(store, name, version))
    stores.set_label(store, name, version, label)
    _say_label(name, label, version, as_json)


@app.command(epilog="Example: `abstain rollback digits`")
def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="its name")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Put the previous `stable` version back."""
    from abstain.models import store as stores  # noqa: PLC0415

    name = stores.parse_reference(model).name
    _say_label(name, stores.STABLE, stores.rollback(store, name), as_json)


@app.command(epilog="Example: `abstain sign digits:3 --key private.pem`")
def sign(
    model: ModelArgument,
    key: Annotated[Path, typer.Option("--key", help="The private key: an elliptic curve's, as PEM.")],
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="Its first line opens the key; else the command asks.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Sign a version, its files verified: `model.sig` in its folder says who made it."""
    from abstain.models import store as stores  # noqa: PLC0415
    from abstain.models.bundle import sign_published  # noqa: PLC0415
    from abstain.models.signatures import check_private_key, is_encrypted, read_password  # noqa: PLC0415

    name, version = stores.resolve(store, model)
    password = read_password(password_file) if password_file else None
    if password is None and is_encrypted(key):
        password = str(typer.prompt(f"Password of {key}", hide_input=True, err=True)).encode()
    # Before the files are read, which may take long.
    check_private_key(key, password)
    signature = sign_published(store, name, version, key, password)
    if as_json:
        _print_json({"model": name, "version": version, "key": str(key), "signature": str(signature)})
    else:
        typer.echo(f"{name}:{version} is signed: {signature}")


@app.command(epilog="Example: `abstain verify digits:3 --key public.pem`")
def verify(
    model: ModelArgument,
    key: Annotated[Path, typer.Option("--key", help="The public key, or a folder of them (*.pem).")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check every file of a version, and that the key has signed it."""
    from abstain.models import store as stores  # noqa: PLC0415
    from abstain.models.bundle import verify_published  # noqa: PLC0415
    from abstain.models.signatures import read_public_keys  # noqa: PLC0415

    trusted = read_public_keys(key)
    name, version = stores.resolve(store, model)
    manifest, signer = verify_published(store, name, version, trusted)
    files = len(manifest.files) + 1
    if as_json:
        _print_json({"model": name, "version": version, "key": str(signer), "files": files, "digest": manifest.digest})
    else:
        typer.echo(f"{name}:{version} is signed by {signer}; its {files} files are as they were signed")


@app.command(epilog="Example: `abstain predict digits --data new.csv --out answers.parquet`")
def predict(
    model: ModelArgument,
    data: Annotated[Path, typer.Option("--data", help="Rows: .npz, .csv or .parquet.")],
    out: Annotated[Path, typer.Option("--out", help="Answers: .csv, .parquet, .npz or .jsonl.")],
    percentile: Annotated[float | None, typer.Option(help="Of the decision; the model's own if left out.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Score the rows of a file: the same numbers as over HTTP."""
    from rich.progress import Progress  # noqa: PLC0415

    from abstain.models import store as stores  # noqa: PLC0415
    from abstain.models.bundle import load_published  # noqa: PLC0415
    from abstain.models.signatures import read_trusted  # noqa: PLC0415
    from abstain.service.compilation import keep_compiled  # noqa: PLC0415
    from abstain.service.offline import predict_file  # noqa: PLC0415
    from abstain.service.settings import read_settings  # noqa: PLC0415

    if percentile is not None:
        check_percentile(percentile)
    settings = read_settings(os.environ)
    trusted = read_trusted(settings.trusted_keys)
    keep_compiled(settings.compiled)
    name, version = stores.resolve(store, model)
    bundle = load_published(store, name, version, trusted)
    console = _stderr()
    # Where stderr is no terminal there is no bar to show, and its end would be an empty line before an error's.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=None)
        rows = predict_file(
            bundle,
            data,
            out,
            percentile,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    result = {"model": name, "version": version, "rows": rows, "out": str(out)}
    if as_json:
        _print_json(result)
    else:
        typer.echo(f"{rows} rows scored by {name}:{version} into {out}")


@app.command(epilog="Example: `abstain serve --port 3000 --workers 2`")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
    workers: Annotated[int, typer.Option(min=1, envvar="ABSTAIN_WORKERS", help="Processes that answer.")] = 1,
    require_sound: Annotated[
        bool,
        typer.Option(
            "--require-sound",
            envvar="ABSTAIN_REQUIRE_SOUND",
            help="Refuse versions whose fit fell short, labelled or not.",
        ),
    ] = False,
    keys: Annotated[
        Path | None, typer.Option("--keys", envvar="ABSTAIN_KEYS", help="A file of keys, which requests then need.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", envvar="ABSTAIN_INSECURE", help="Listen beyond loopback although there are no keys."
        ),
    ] = False,
    tls_cert: Annotated[
        Path | None,
        typer.Option("--tls-cert", envvar="ABSTAIN_TLS_CERT", help="A certificate in PEM: answer over TLS alone."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", envvar="ABSTAIN_TLS_KEY", help="Its private key.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Serve the store's models over HTTP, with BentoML, in the foreground."""
    from abstain.models import store as stores  # noqa: PLC0415
    from abstain.models.bundle import read_published, verify_files  # noqa: PLC0415
    from abstain.models.errors import AbstainError, ConfigError  # noqa: PLC0415
    from abstain.models.signatures import read_trusted  # noqa: PLC0415
    from abstain.service.access import check_access  # noqa: PLC0415
    from abstain.service.process import make_run_folder  # noqa: PLC0415
    from abstain.service.settings import check_address, read_settings  # noqa: PLC0415

    if bool(tls_cert) != bool(tls_key):
        missing, given = ("--tls-key", "--tls-cert") if tls_cert else ("--tls-cert", "--tls-key")
        raise typer.BadParameter(f"expected a file, for {given} has one, found none", param_hint=missing)
    given = {"KEYS": keys or "", "INSECURE": int(insecure), "TLS_CERT": tls_cert or "", "TLS_KEY": tls_key or ""}
    os.environ |= {f"ABSTAIN_{name}": str(value) for name, value in given.items()}
    settings = read_settings(os.environ)
    check_address(settings, host)
    check_access(settings)
    trusted = read_trusted(settings.trusted_keys)
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
                faults.append(f"{name}:{version} is refused, its fit fell short: {'; '.join(manifest.shortfalls)}")
            else:
                served.append(f"{name}:{version}")
    if not served:
        raise ConfigError(
            "nothing to serve",
            where=str(store),
            found="; ".join(faults) or ("no models" if store.is_dir() else "no such folder"),
            fix=None if faults else "publish a model with abstain fit, or name another folder with --store",
        )
    for fault in faults:
        sys.stderr.write(f"abstain: {fault}\n")
    _check_port(host, port)
    access = f"keys of {settings.keys}" if settings.keys else "no keys"
    if settings.oidc_issuer:
        access += f", tokens of {settings.oidc_issuer}"
    sys.stderr.write(
        f"abstain: loading {', '.join(served)}, to be served at {'https' if settings.tls_cert else 'http'}://{host}:{port}/, "
        f"{access}\n"
    )
    sys.stderr.flush()
    # BentoML changes to this folder and imports from it: an empty one, for ours hold modules with common names.
    empty = make_run_folder() / "empty"
    empty.mkdir()
    # BentoML changes to another folder before it imports the service: from there relative paths would lead elsewhere.
    os.environ |= {f"ABSTAIN_{name.upper()}": str(value) for name, value in settings if isinstance(value, Path)}
    os.environ |= {
        "ABSTAIN_STORE": str(store.resolve()),
        "ABSTAIN_WORKERS": str(workers),
        "ABSTAIN_REQUIRE_SOUND": str(int(require_sound)),
        "ABSTAIN_TRUSTED_KEYS": ",".join(map(str, settings.trusted_keys)),
    }
    # -P: Python would look for modules in the folder that abstain is started from, and so run whatever lies there.
    command = [
        sys.executable,
        "-P",
        "-m",
        "bentoml",
        "serve",
        "abstain.service.app:Abstain",
        "--host",
        host,
        "--port",
        str(port),
    ]
    os.execv(sys.executable, [*command, "--working-dir", str(empty)])


keys = typer.Typer(
    help="Make, list and revoke the keys that requests need.", context_settings=HELP, no_args_is_help=True
)
app.add_typer(keys, name="key")
KeysOption = Annotated[Path, typer.Option("--keys", envvar="ABSTAIN_KEYS", help="The file of keys.", show_default=True)]
DEFAULT_KEYS = Path("abstain-keys.json")


@keys.command("new", epilog="Example: `abstain key new prometheus --scope metrics`")
def new_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who has the key.")],
    scopes: Annotated[
        list[str],
        typer.Option("--scope", help="predict, read, metrics, feedback, or admin for all of them; may be repeated."),
    ],
    rate: Annotated[float | None, typer.Option("--rate", help="Requests a second, over all workers.")] = None,
    path: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """Make a key, and print it: the file keeps only its hash. A running server takes it within a second."""
    from abstain.service.keys import MOST_PER_SECOND, SCOPES, add_key  # noqa: PLC0415

    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown:
        raise typer.BadParameter(
            f"expected one of {', '.join(SCOPES)}, found {unknown[0]!r}; for several: --scope predict --scope read",
            param_hint="--scope",
        )
    if rate is not None and not 0 < rate <= MOST_PER_SECOND:
        raise typer.BadParameter(
            f"expected a number above 0, at most {MOST_PER_SECOND:g}, found {rate:g}", param_hint="--rate"
        )
    key = add_key(path, name, tuple(scope for scope in SCOPES if scope in scopes), rate)
    if as_json:
        _print_json({"name": name, "key": key, "keys": str(path)})
    else:
        typer.echo(key)
        if "ABSTAIN_KEYS" not in os.environ:
            sys.stderr.write(f"abstain: a server asks for it when it is started with ABSTAIN_KEYS={path}\n")


@keys.command("list")
def list_keys(path: KeysOption = DEFAULT_KEYS, as_json: JsonOption = False) -> None:
    """List the names of all keys, and what each is for."""
    from abstain.service.keys import read_keys  # noqa: PLC0415

    known = read_keys(path).keys
    if as_json:
        _print_json(
            {
                "keys": [
                    {"name": key.name, "scopes": key.scopes, "rate": key.rate, "created": key.created} for key in known
                ]
            }
        )
        return
    _table(
        ["name", "scopes", "rate", "created"],
        [[key.name, ", ".join(key.scopes), key.rate and f"{key.rate:g}/s", key.created] for key in known],
        empty=f"no keys in {path}",
    )


@keys.command("revoke", epilog="Example: `abstain key revoke prometheus`")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key.")],
    path: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """Take a key back. A running server refuses it within a second."""
    from abstain.service.keys import revoke_key  # noqa: PLC0415

    revoke_key(path, name)
    if as_json:
        _print_json({"revoked": name, "keys": str(path)})
    else:
        typer.echo(f"{name} is revoked")


def _check_port(host: str, port: int) -> None:
    """Refuses an address that cannot be listened on, before BentoML says so in thirty lines."""
    import socket  # noqa: PLC0415

    from abstain.models.errors import ConfigError  # noqa: PLC0415

    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            "cannot listen", where=f"{host}:{port}", found=error.strerror, fix="choose another --port or --host"
        ) from error


def _say_label(name: str, label: str, version: int, as_json: bool) -> None:
    if as_json:
        _print_json({"name": name, "label": label, "version": version})
    else:
        typer.echo(f"{name}@{label} is {name}:{version}")


def check_percentile(percentile: float) -> None:
    """Refuses a percentile that is none, or that means a share, as .99 does: wrong usage, exit code 2."""
    if not 1 < percentile < 100:
        raise typer.BadParameter(
            f"expected a percentile above 1 and below 100, such as 99, found {percentile:g}", param_hint="--percentile"
        )


def _fail(text: str) -> None:
    sys.stderr.write(f"abstain: {text}\n")
    sys.exit(1)


def _print_json(content: Any) -> None:
    import orjson  # noqa: PLC0415

    sys.stdout.write(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode() + "\n")


def _stderr() -> Any:
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True)


def _table(heads: list[str], rows: list[list[Any]], empty: str = "") -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from abstain.models.errors import printable  # noqa: PLC0415

    if not rows:
        sys.stderr.write(f"{empty}\n")
        return
    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # What a manifest says must not command the terminal.
        table.add_row(*(Text("" if cell is None else printable(str(cell)), overflow="fold") for cell in row))
    Console().print(table)


def _flat_rows(tree: Any, prefix: str = "") -> list[list[Any]]:
    if isinstance(tree, dict) and tree:
        branches = cast("dict[str, Any]", tree)
        return [
            row for key, value in branches.items() for row in _flat_rows(value, f"{prefix}.{key}" if prefix else key)
        ]
    return [[prefix, f"{tree:.6g}" if isinstance(tree, float) else tree]]
