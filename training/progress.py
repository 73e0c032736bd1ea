"""A progress bar on stderr: how far, the latest figures, and the time left."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.methods.form import Progress as Report


@contextmanager
def progress_bar(title: str) -> Generator[Report]:
    """A bar while the block runs; where stderr is no terminal, one line for each report instead."""
    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, facts="compiling")

        def report(done: int, total: int, **facts: float) -> None:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in facts.items())
            bar.update(task, completed=done, total=total, facts=shown)
            if not console.is_terminal:
                left = bar.tasks[0].time_remaining
                console.print(
                    f"{title}: {done}/{total}  {shown}" + (f"  {left:.0f} s left" if left else ""), highlight=False
                )

        yield report
