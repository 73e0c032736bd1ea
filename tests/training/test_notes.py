"""Notes of a manifest: the code of each is known from its sentence, also of fits of earlier versions."""

import pytest

from abstain.training.notes import note_code, write_note


@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("draws_from", "draws of digits:1, calibrated anew on 300 rows of new.npz"),
        ("split", "split by data.group = 'patient': calibrated on 40 rows of 4 groups"),
        ("accepts_far_rows", "its decision accepts rows far outside the training data: 3 of 8 rows"),
        (None, "the draws were thinned"),
    ],
)
def test_a_note_has_the_code_of_its_beginning(code, note):
    """The sentences are those in the manifests of published versions; another note has no code."""
    assert note_code(note) == code


def test_a_written_note_is_recognised():
    """What is written with a code is read with the same one."""
    assert note_code(write_note("split", "data.time = 'day'")) == "split"
