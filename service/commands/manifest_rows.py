"""The rows of `abstain show`: what a person reads of a manifest. `abstain show --json` prints all of it."""

from __future__ import annotations

from typing import Any, cast

from abstain.models.bundles.manifest import Manifest
from abstain.models.tables.dates import date_text

FEW_NUMBERS, MANY_TEXTS = 6, 30
"""Lists of more numbers are summarised; lists of more texts, categories or classes are shortened."""
FIRST = ("labels", "shortfalls", "notes", "metrics", "calibration", "method", "draws", "data")
"""The most important facts: is it served, is it reliable, how good is it, and when does it reject."""
Json = dict[str, Any]


def manifest_rows(manifest: Manifest, labels: list[str]) -> list[list[str]]:
    """Returns a row with a name and a text for each fact of a version whose files are verified; empty facts have no row.

    Args:
        labels: the labels that point at the version.
    """
    content: Json = manifest.model_dump(mode="json")
    metrics, calibration = content["metrics"], content["calibration"]
    model, diagnostics = content["model"], content["diagnostics"]
    names = model["class_names"]
    content["labels"] = labels or "none"
    content["shortfalls"] = _numbered(content["shortfalls"]) or "none"
    content["notes"] = _numbered(content["notes"])
    metrics.pop("reliability", None)
    metrics["classes"] = _class_texts(names, metrics.get("classes"))
    calibration["other_limits"] = _limits_text(calibration.get("other_limits", []))
    columns = model["preprocessing"]["columns"]
    model["preprocessing"]["columns"] = _shortened({column["name"]: _column_text(column) for column in columns})
    content["diagnostics"] = {
        key: value for key, value in diagnostics.items() if key not in {"loss", "reports", "trace"}
    }
    if content.get("imported"):
        sources = content["imported"]["sources"]
        content["imported"]["sources"] = [f"{source['name']} {source['digest']}" for source in sources]
    content["densities"] = list(content["densities"])
    content["files"] = f"{len(content['files'])} files, all unchanged"
    return _flat_rows({key: content.pop(key) for key in FIRST} | content)


def _class_texts(names: list[str], table: Any) -> Json | None:
    """Returns one text for each class from the columns `metrics.classes`; None without valid ones."""
    keys = ("rows", "predicted", "accuracy", "precision")
    if not isinstance(table, dict):
        return None
    columns = [cast("Json", table).get(key) for key in keys]
    if any(not isinstance(column, list) or len(cast("list[Any]", column)) != len(names) for column in columns):
        return None
    rows = zip(names, *cast("list[list[Any]]", columns), strict=True)
    return _shortened(
        {
            name: f"{count} rows, {predicted} predicted, recall {_percent(recall)}, precision {_percent(precision)}"
            for name, count, predicted, recall, precision in rows
        }
    )


def _percent(share: Any) -> str:
    return f"{share:.1%}" if isinstance(share, int | float) else "–"


def _limits_text(limits: list[Json]) -> str:
    """Returns how many limits of the error a request can choose from."""
    errors = [limit["max_error"] for limit in limits]
    return f"{len(errors)}, for a max_error of {min(errors):g} to {max(errors):g}" if errors else ""


def _column_text(column: Json) -> str:
    """Returns the codes of a column's categories, and the value or code that replaces a gap."""
    categories = [f"{code} {name}" for code, name in enumerate(column["categories"])]
    gap = column["missing"]
    shown = date_text(gap) if column["kind"] == "date" and gap is not None else _text(gap)
    return f"{_joined(categories) or column['kind']}; a gap is {shown}"


def _shortened(facts: Json) -> Json:
    """Returns the first `MANY_TEXTS` facts, and how many are left out."""
    kept = dict([*facts.items()][:MANY_TEXTS])
    return kept if len(facts) <= MANY_TEXTS else kept | {"…": f"{len(facts) - MANY_TEXTS} more, with --json"}


def _flat_rows(tree: Any, prefix: str = "") -> list[list[str]]:
    if isinstance(tree, dict):
        branches = cast("Json", tree)
        return [
            row for key, value in branches.items() for row in _flat_rows(value, f"{prefix}.{key}" if prefix else key)
        ]
    text = _text(tree)
    return [[prefix, text]] if text else []


def _text(value: Any) -> str:
    """Returns a value as a person reads it; empty for None and for an empty list."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    values = cast("list[Any]", value)
    numbers = [number for number in values if isinstance(number, int | float)]
    if len(numbers) == len(values) > FEW_NUMBERS:
        return f"{len(values)} numbers, {min(numbers):.4g} to {max(numbers):.4g}"
    if any(isinstance(part, list | dict) for part in values):
        return f"{len(values)} entries, with --json"
    return _joined([_text(part) for part in values])


def _joined(texts: list[str]) -> str:
    more = [f"… ({len(texts) - MANY_TEXTS} more, with --json)"] if len(texts) > MANY_TEXTS else []
    return ", ".join(texts[:MANY_TEXTS] + more)


def _numbered(sentences: list[str]) -> str:
    """Joins sentences, numbered if there are several."""
    if not sentences[1:]:
        return "".join(sentences)
    return "; ".join(f"({number}) {sentence}" for number, sentence in enumerate(sentences, start=1))
