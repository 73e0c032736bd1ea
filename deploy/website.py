"""Hooks of `make docs` (mkdocs.yml): pages and links outside `docs/`, and the package's source for the API page.

The guides link to files of the repository that the website does not have. Markdown files at the top level become pages of
the site; a link to any other file is replaced by its path. abstain is not imported: griffe reads the source.
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
"""Top-level files that become pages."""
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Builds the package's folder from links, and lists the decision records in the navigation."""
    link_package(PACKAGE)
    decisions = sorted(Path(config.docs_dir, "adr").glob("*.md"))
    pages = [f"adr/{path.name}" for path in decisions]
    config.nav = [
        {"Design decisions": pages} if entry == {"Design decisions": "adr/"} else entry for entry in config.nav or []
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the top-level Markdown files."""
    for name in ADDED:
        files.append(File.generated(config, name, content=(PROJECT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Converts links that leave `docs/` to links within the site, or to paths."""
    source = page.file.src_uri
    folder = "" if source in ADDED else normpath(f"docs/{dirname(source)}")
    parts = _FENCE.split(markdown)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda link: _site_link(link, folder, dirname(source)), part)
        for part in parts
    )


def link_package(folder: Path) -> None:
    """Makes a folder that contains `abstain` as an installation does, with the package folders from pyproject.toml."""
    setuptools = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    shutil.rmtree(folder, ignore_errors=True)
    # A subpackage's source may be outside its parent's folder, so a package's folder is created and its content linked.
    for name, source in sorted(setuptools["package-dir"].items()):
        package = folder / name.replace(".", "/")
        if package.is_symlink():  # a folder inside a linked one
            continue
        package.mkdir(parents=True, exist_ok=True)
        for path in (PROJECT / source).iterdir():
            if path.suffix in {".py", ".pyi"} or (path.is_dir() and any(path.glob("*.py"))):
                (package / path.name).symlink_to(path)


def _site_link(link: re.Match[str], folder: str, site_folder: str) -> str:
    """Returns a link on a page in `folder` of the repository, rewritten for the site."""
    target, anchor = normpath(f"{folder}/{link['target']}".lstrip("/")), link["anchor"] or ""
    if target == "README.md":
        return f"[{link['text']}]({relpath('index.md', site_folder or '.')}{anchor})"
    if target in ADDED:
        return f"[{link['text']}]({relpath(target, site_folder or '.')}{anchor})"
    if target.startswith("docs/"):
        inside = relpath(target.removeprefix("docs/"), site_folder or ".")
        return f"{link['image']}[{link['text']}]({inside}{anchor})"
    text_is_path = link["text"].strip("`") in {target, Path(target).name}
    return f"`{target}`" if text_is_path else f"{link['text']} (`{target}`)"
