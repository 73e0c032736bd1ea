"""The guide of the client is true: its examples run as they are printed, and its tables name what there is."""

import inspect
import re

import numpy as np

import abstain
from tests.helpers.paths import PROJECT

GUIDE = (PROJECT / "docs" / "client.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_examples_of_the_guide_run(server, crew_url, capsys):
    """One after another, in one program; what is printed is what the comments show."""
    names = {}
    for block in BLOCKS:
        code = compile(block.replace("http://127.0.0.1:3000", server.url), "docs/client.md", "exec")
        if 'model="crew"' in block:
            with abstain.Client(crew_url) as client:
                exec(code, names | {"client": client})  # noqa: S102
        else:
            exec(code, names)  # noqa: S102
    shown = re.findall(r"print\(.*?\)  # (.*)", GUIDE)
    assert len(shown) == 2
    assert capsys.readouterr().out.splitlines() == shown
    assert len(names["predictions"]) == 100
    assert names["few"].interval.shape == (1, 2)
    assert list(names["answers"].index) == ["low", "middle", "high"]
    assert np.isfinite(names["asyncio"].run(names["ask"]())).all()
    names["client"].close()


def test_the_example_of_readme_runs(server):
    """With an image in place of its rows."""
    (block,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text("utf-8"), re.DOTALL)
        if "abstain.Client" in block
    ]
    names = {"images": np.zeros((2, 8, 8))}
    exec(block.replace("http://127.0.0.1:3000", server.url), names)  # noqa: S102
    assert len(names["predictions"]) == 2
    names["client"].close()


def test_every_argument_and_every_error_is_in_the_guide():
    """The tables of arguments and of errors are complete."""
    tables = re.findall(r"^\| (`.*?) \|", GUIDE, re.MULTILINE)
    named = {word for cell in tables for word in re.findall(r"`(\w+)`", cell)}
    arguments = {*inspect.signature(abstain.Client).parameters, *inspect.signature(abstain.Client.predict).parameters}
    assert arguments - {"self", "rows"} <= named
    errors = {name for name in abstain.__all__ if isinstance(getattr(abstain, name), type)}
    assert {name for name in errors if issubclass(getattr(abstain, name), abstain.RequestError)} <= named
