"""The guides are true: their links resolve, their commands exist, and the tutorial works as it is printed."""

import io
import json
import re
import runpy
import shlex
import shutil
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import httpx
import orjson
import pytest
import typer

from abstain.models.bundles.bundle import load
from abstain.models.bundles.rollouts import read_rollout
from abstain.models.bundles.store import set_label
from abstain.service.commands.cli import app
from abstain.service.commands.predict_file import predict_file
from abstain.service.errors import CODES, STATUS
from abstain.service.predict.request import parse_predict
from abstain.service.predict.response import check_fields
from abstain.training.cli import add_commands
from abstain.training.config.reading import read_config
from abstain.training.fit import fit
from abstain.training.initialize import initialize, summary_lines
from tests.helpers.fits import silent
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE, wait_for
from tests.helpers.servers import start_server, stop_server

DOCS = PROJECT / "docs"
PAGES = sorted(
    [*PROJECT.glob("*.md"), *(path for folder in ("docs", "examples") for path in (PROJECT / folder).rglob("*.md"))]
)
FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")


@cache
def text_of(path):
    """A page's text."""
    return path.read_text("utf-8")


def prose(path):
    """A page without its blocks of code and without code in its lines."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text_of(path)))


def blocks(path, language):
    """The blocks of code in one language."""
    return [block for found, block in FENCE.findall(text_of(path)) if found == language]


@cache
def anchors(path):
    """What `#…` may name: headings, as code hosts and the website (mkdocs.yml) write them, and `<a id="…">`."""
    headings = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", text_of(path)), re.MULTILINE)
    shown = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    slugs = {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in shown}
    return slugs | set(re.findall(r"<a id=\"([^\"]+)\"></a>", prose(path)))


def broken_links(path):
    """The links of a page that lead nowhere."""
    for target in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        found = (path.parent / file).resolve() if file else path
        # A link beyond the repository works on no other machine.
        if not found.exists() or not found.is_relative_to(PROJECT.resolve()):
            yield f"{target}: no such file"
        elif anchor and (found.suffix != ".md" or anchor not in anchors(found)):
            yield f"{target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_every_link_resolves(path):
    """To a file of the repository, and to a heading in it."""
    assert list(broken_links(path)) == []


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    """The check sees a missing file, a missing heading and a heading that is there."""
    monkeypatch.setattr("tests.project.test_docs.PROJECT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# One `code` — two, [three](page.md)\n"
        '[a](page.md#one-code--two-three) [b](#four) <a id="five"></a>[i](#five) ![c](none.png) `[d](e.md)` [f](https://example.org)\n'
        "```sh\n# Four\n[g](h.md)\n```\n"
    )
    assert list(broken_links(page)) == ["#four: no such heading", "none.png: no such file"]


def test_the_website_has_every_page():
    """The navigation of mkdocs.yml names each page of `docs/` once, and no other; `adr/` is listed when it is built."""
    navigation = (PROJECT / "mkdocs.yml").read_text("utf-8").split("\nnav:\n")[1].split("\nhooks:")[0]
    named = re.findall(r": (\S+\.md)", navigation)
    added = {"CONTRIBUTING.md", "CHANGELOG.md"}
    assert sorted(named) == sorted({path.name for path in DOCS.glob("*.md")} | added)
    assert "Design decisions: adr/" in navigation


@cache
def commands():
    """Every command and subcommand of `abstain` by its words, and its options."""
    add_commands(app)
    found = {}

    def visit(command, words):
        found[words] = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for name, child in getattr(command, "commands", {}).items():
            visit(child, (*words, name))

    visit(typer.main.get_command(app), ())
    return found


def wrong_commands(path):
    """What the page's shell blocks call of `abstain` and `make` that there is not."""
    verbs = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.count("'") % 2 == 0 and line.count('"') % 2 == 0 else []
            if words[:1] == ["make"] and words[1:] and words[1] not in verbs:
                yield line
            if words[:1] == ["abstain"]:
                called = max((key for key in commands() if tuple(words[1 : 1 + len(key)]) == key), key=len)
                options = {word.partition("=")[0] for word in words if word.startswith("--")}
                if not called or options - commands()[called] - {"--help"}:
                    yield line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_every_command_exists(path):
    """With the options that it is shown with."""
    assert list(wrong_commands(path)) == []


def written_to(name, content):
    """Writes a file into the working folder; its name."""
    Path(name).write_text(content)
    return name


SHORTER = ("steps=300", "starts=1", "draws=20", "reports=1", "learning_rate=0.01")


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The tutorial's folder after its first fit, with fewer steps; what its commands printed lies in `printed.txt`."""
    folder = tmp_path_factory.mktemp("tutorial")
    make_csv, *_ = blocks(DOCS / "tutorial.md", "python")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        runpy.run_path(written_to("make_csv.py", make_csv))
        written = initialize(Path("tumours.csv"), "diagnosis")
        published = fit(read_config(Path("tumours.toml"), SHORTER), None, folder / "artifacts", silent, report=False)
    assert published.shortfalls == ()
    shown = blocks(DOCS / "tutorial.md", "text")
    assert printed.getvalue() in shown
    assert "".join(f"{line}\n" for line in (*summary_lines(written), written.path)) in shown
    return folder


def test_the_tutorial_works_as_printed(tutorial, monkeypatch):
    """Its files, with fewer steps: the CSV, the config, the fit, its request, and which of its rows are rejected."""
    monkeypatch.chdir(tutorial)
    _, ask, *_ = blocks(DOCS / "tutorial.md", "python")
    for part in blocks(DOCS / "tutorial.md", "toml"):
        assert part in Path("tumours.toml").read_text()
    bundle = load(tutorial / "artifacts" / "tumours" / "1")
    for block in blocks(DOCS / "tutorial.md", "sh"):
        for body in re.findall(r"-d '(\{.*?\})'", block, re.DOTALL):
            asked = parse_predict(body.encode(), 10)
            check_fields(bundle.manifest.model, asked.fields)
            (record,) = json.loads(body)["records"]
            assert {*record} == {*bundle.manifest.model.feature_names}

    definitions = ask[ask.index("usual = ") : ask.index("body = ")]
    rows = runpy.run_path(written_to("rows.py", definitions))["rows"]
    names = bundle.manifest.model.feature_names
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows.values())]
    Path("ask.csv").write_text("\n".join(lines))
    predict_file(bundle, Path("ask.csv"), Path("answers.jsonl"))
    answers = dict(zip(rows, map(orjson.loads, Path("answers.jsonl").read_bytes().splitlines()), strict=True))
    assert not answers["typical"]["reject"]
    assert answers["typical"]["label"] == "benign"
    assert not answers["between the classes"]["reject"]
    assert answers["radius ten times too large"]["reject"]
    assert "range above its 99th percentile: radius" in answers["radius ten times too large"]["reasons"]


def test_the_rollout_of_the_tutorial_works_as_printed(tutorial, tmp_path, monkeypatch, run):
    """Its commands against a real server, from the second fit to the promotion, with fewer steps."""
    chapter = text_of(DOCS / "tutorial.md").partition("## 10. ")[2].partition("## 11. ")[0]
    commands = [line for language, block in FENCE.findall(chapter) if language == "sh" for line in block.splitlines()]
    (callers,) = [block for language, block in FENCE.findall(chapter) if language == "python"]
    monkeypatch.chdir(tutorial)
    store = Path(shutil.copytree(tutorial / "artifacts", tmp_path / "artifacts"))
    set_label(store, "tumours", 1, "stable")
    server = start_server(store, tmp_path, ABSTAIN_REFRESH_SECONDS="0.5", ABSTAIN_COMPILED=str(tmp_path / "compiled"))
    try:
        asking = callers.replace("http://127.0.0.1:3000", server.url)
        assert asking != callers
        for command in commands:
            words = shlex.split(command)
            if words[:2] == ["abstain", "fit"]:
                own = tuple(word for word in words[3:] if word != "--set")
                fit(read_config(Path(words[2]), (*SHORTER, *own)), None, store, silent, report=False)
            elif words[0] == "python":
                until_followed(server.url)
                runpy.run_path(written_to("callers.py", asking))
                wait_for(lambda: read_rollout(store, "tumours").outcome is not None)
            else:
                assert run(*words[1:], "--store", store)[0] == 0, command
        assert read_rollout(store, "tumours").outcome.verdict == "promote"
        assert run("rollout", "status", "tumours", "--url", server.url)[0] == 0
        wait_for(lambda: httpx.get(f"{server.url}/models/tumours", timeout=PATIENCE).json()["version"] == 2)
    finally:
        stop_server(server)


def until_followed(url):
    """Waits until the server follows a rollout."""
    wait_for(lambda: httpx.get(f"{url}/models", timeout=PATIENCE).json()["models"][0]["rollout"] is not None)


def test_every_code_of_an_error_is_in_the_reference():
    """The table of docs/responses.md has the codes that the service gives, and no others."""
    given = set(CODES.values()) | {kind.code for kind in STATUS}
    for path in (PROJECT / "service").rglob("*.py"):
        given |= set(re.findall(r'\bcode="(\w+)"', text_of(path)))
    table = re.findall(r"^\| \d{3} \| (`.*?) \|", text_of(DOCS / "responses.md"), re.MULTILINE)
    known = {code for cell in table for code in re.findall(r"`(\w+)`", cell)}
    # Each status has one code by default; these statuses have more exact ones.
    assert known == given - {"unauthorized", "forbidden", "too_many_requests", "error", "invalid_data"}
