"""Texts that TOML must quote: any name of a column is read back as it was, and no comment ends early."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from abstain.training.proposal.config_text import comment, quote

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXTS)
def test_a_quoted_text_is_read_back(text):
    """Quotes, backslashes, dots, control characters and every other character."""
    assert tomllib.loads(f"x = {quote(text)}") == {"x": text}


@given(TEXTS)
def test_a_comment_is_one_line(text):
    """Whatever the name of a column that it holds."""
    assert tomllib.loads(f"{comment(text)}\ny = 1") == {"y": 1}
