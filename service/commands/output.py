"""Prints JSON documents and tables on stdout for the commands."""

from __future__ import annotations

import sys
from typing import Any


def print_json(content: Any) -> None:
    """Prints one indented JSON document."""
    import orjson  # noqa: PLC0415

    sys.stdout.write(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode() + "\n")


def stderr_console() -> Any:
    """Makes a console on stderr for progress; results go to stdout."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True)


def print_table(heads: list[str], rows: list[list[Any]], empty: str = "") -> None:
    """Prints a table; if it has no rows, prints the line `empty` on stderr."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from abstain.models.errors import printable  # noqa: PLC0415

    if not rows:
        sys.stderr.write(f"{empty}\n")
        return
    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # Text of a manifest must not contain commands for the terminal.
        table.add_row(*(Text("" if cell is None else printable(str(cell)), overflow="fold") for cell in row))
    Console().print(table)
