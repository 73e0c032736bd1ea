"""Hooks of `make docs` (mkdocs.yml): pages and links outside `docs/`, and the package as the API page reads it.

The guides link to files of the repository, which a website does not have. Markdown files at the top level become pages
of the site; the link to any other file becomes its path. Nothing of abstain is imported: griffe reads the source.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "build" / "docs-package"
ADDED = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Files of the top level that become pages."""
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Links the package's parts together, and lists the decisions in the navigation."""
    link_package(PACKAGE)
    decisions = sorted(Path(config.docs_dir, "adr").glob("*.md"))
    pages = [f"adr/{path.name}" for path in decisions]
    config.nav = [{"Decisions": pages} if entry == {"Decisions": "adr/"} else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the Markdown files of the top level."""
    for name in ADDED:
        files.append(File.generated(config, name, content=(PROJECT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links that leave `docs/` into links within the site, or into paths."""
    source = page.file.src_uri
    folder = "" if source in ADDED else normpath(f"docs/{dirname(source)}")
    parts = _FENCE.split(markdown)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda link: _moved(link, folder, dirname(source)), part)
        for part in parts
    )


def link_package(folder: Path) -> None:
    """The folder with `abstain` in it as an installation has it: pyproject.toml says where each part lies."""
    setuptools = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    shutil.rmtree(folder, ignore_errors=True)
    # A package's parts may lie beside it, so its own folder is not linked but made.
    for name, place in sorted(setuptools["package-dir"].items()):
        made = folder / name.replace(".", "/")
        if made.is_symlink():  # a folder within one that is linked
            continue
        made.mkdir(parents=True, exist_ok=True)
        for path in (PROJECT / place).iterdir():
            if path.suffix in {".py", ".pyi"} or (path.is_dir() and any(path.glob("*.py"))):
                (made / path.name).symlink_to(path)


def _moved(link: re.Match[str], folder: str, site_folder: str) -> str:
    """A link of a page in `folder` of the repository, as the site has it."""
    target, anchor = normpath(f"{folder}/{link['target']}".lstrip("/")), link["anchor"] or ""
    if target == "README.md":
        return f"[{link['text']}]({relpath('index.md', site_folder or '.')}{anchor})"
    if target in ADDED:
        return f"[{link['text']}]({relpath(target, site_folder or '.')}{anchor})"
    if target.startswith("docs/"):
        inside = relpath(target.removeprefix("docs/"), site_folder or ".")
        return f"{link['image']}[{link['text']}]({inside}{anchor})"
    shown = link["text"].strip("`") in {target, Path(target).name}
    return f"`{target}`" if shown else f"{link['text']} (`{target}`)"
