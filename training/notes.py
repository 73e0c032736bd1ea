"""Codes of the notes that a new calibration replaces, and which notes are about the method alone.

A manifest has notes as sentences. The beginning of a sentence is the sign of its code, so that manifests of earlier fits are
understood, too.
"""

from __future__ import annotations

from typing import Literal

NoteCode = Literal["accepts_far_rows", "draws_from", "ranks_wrongly", "split", "unseen"]

_BEGINNINGS: dict[NoteCode, str] = {
    "accepts_far_rows": "its decision accepts rows far outside the training data: ",
    "draws_from": "draws of ",
    "ranks_wrongly": "a high decision score does not mean a doubtful answer: ",
    "split": "split by ",
    "unseen": "it rejects more rows than stated: ",
}


_DIAGNOSTIC = (
    "the guide is not close to the posterior of the parameters: ",
    "the precision was numerically singular; ",
)


def write_note(code: NoteCode, rest: str) -> str:
    """Returns a note with the beginning that belongs to its code."""
    return _BEGINNINGS[code] + rest


def note_code(note: str) -> NoteCode | None:
    """Returns the code of a note; None if no calibration replaces it."""
    return next((code for code, beginning in _BEGINNINGS.items() if note.startswith(beginning)), None)


def is_diagnostic(note: str) -> bool:
    """Whether a note is a figure for experts of the method, which says nothing about the quality of the predictions.

    `abstain fit` does not print it; the manifest, `abstain show` and the report have it.
    """
    return note.startswith(_DIAGNOSTIC)
