"""A progress bar on stderr with the latest figures and the remaining time; and stages without steps."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from abstain.progress import ProgressCallback


@contextmanager
def stage(progress: ProgressCallback | None, name: str) -> Generator[None]:
    """Reports the beginning and the end of a stage, as one step."""
    if progress:
        progress(0, 1, passage=name)
    yield
    if progress:
        progress(1, 1, passage=name)


@contextmanager
def progress_bar(title: str) -> Generator[ProgressCallback]:
    """Shows a progress bar while the block runs; if stderr is not a terminal, one line for each report."""
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
        tasks = {"": bar.add_task(title, total=None, facts="compiling")}

        def report(done: int, total: int, passage: str = "", **facts: float) -> None:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in facts.items())
            if passage not in tasks:
                # The first passage reuses the bar of the compilation.
                tasks[passage] = tasks.pop("") if "" in tasks else bar.add_task(title, total=None, facts="")
            name = f"{title}, {passage}" if passage else title
            bar.update(tasks[passage], description=name, completed=done, total=total, facts=shown)
            if not console.is_terminal:
                left = next(task for task in bar.tasks if task.id == tasks[passage]).time_remaining
                console.print(
                    f"{name}: {done}/{total}  {shown}" + (f"  {left:.0f} s left" if left else ""), highlight=False
                )

        yield report
