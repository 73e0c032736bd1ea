"""report.html: for every kind of fit the sections it should have, true numbers in words, and nothing that could run."""

import json
import re
import shutil
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from jinja2 import UndefinedError

from abstain.models.bundles.bundle import load
from abstain.models.bundles.manifest import read_manifest
from abstain.models.bundles.shortfalls import recognise, texts
from abstain.training.calibrate import calibrate_version
from abstain.training.config.calibration import EvaluationConfig
from abstain.training.config.reading import read_config
from abstain.training.evaluate import evaluate_version
from abstain.training.evaluation.metrics import expected_calibration_error, reliability_bins
from abstain.training.fit import fit
from abstain.training.report.page import TEMPLATES, build_heading, environment, write_report
from tests.helpers.fits import silent
from tests.helpers.paths import CONFIGS

VOID = {"meta", "br", "hr", "img", "input", "link"}
OF_CLASSES = ["reliability", "risk"]
OF_NUMBERS = ["pit", "risk"]
OF_SCORES = ["decision", "scores"]
OF_CHAINS = ["trace", "ranks", "agreement"]
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\frac{", "a & b 犬")


class Page(HTMLParser):
    """A page's tags in order, its attributes, its texts, and the pictures by what stands above them."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open, self.pictures, self.headings = [], [], [], [], [], []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        """Notes a tag that has an end."""
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "svg":
            self.pictures.append(dict(attrs)["aria-label"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Notes a tag that ends at once."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        """Every tag ends where the last that was opened is of its kind."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Notes a text, and of headings which."""
        self.texts.append(data)
        if self.open and self.open[-1] in {"h1", "h2", "h3"}:
            self.headings.append(data)


def page_of(store, name, version=1):
    """A version's page, its content, and its manifest."""
    folder = store / name / str(version)
    content = (folder / "report.html").read_text("utf-8")
    return Page(content), content, read_manifest(folder)


def named(content):
    """The pictures' names, in order: each has an id of its own for what it refers to, or none."""
    captions = {
        "reliability": "Reliability diagram",
        "risk": "Risk against coverage",
        "decision": "Distribution of the decision score",
        "roc": "ROC curves",
        "scores": "Distributions of",
        "loss": "Loss over",
        "trace": "Log posterior density",
        "ranks": "Rank histograms",
        "agreement": "Histograms over",
        "band": "Mean and bands",
        "predicted": "Predicted against true",
        "pit": "Histogram of where",
    }
    found = [next(key for key, words in captions.items() if label.startswith(words)) for label in content.pictures]
    assert len(set(found)) == len(found)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A store with `hostile` (digits with OOD sets, everything that can be named named so as to do harm), `boxes` (NUTS,
    two classes) and `table` (a regression of several columns).
    """
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(240, 4, 3)), np.arange(240) % 4
    x[np.arange(240), y, 0] += 3
    np.savez(folder / "rows.npz", x=x, y=y, class_names=np.array(HOSTILE))
    np.savez(folder / "far.npz", x=rng.normal(size=(60, 4, 3)) + 9)
    np.savez(folder / "near.npz", x=rng.normal(size=(70, 4, 3)))
    np.savez(folder / "infinite.npz", x=np.full((5, 4, 3), 3e38))
    small = ("data.test_size=60", "data.calibration_size=60", "steps=150", "draws=12", "reports=2", "hidden=[8]")
    sets = EvaluationConfig(ood={name: str(folder / f"{path}.npz") for name, path in SETS.items()})
    terms = (f"source={folder / 'rows.npz'}", "name=hostile", "percentile=90", "inputs=none", *small)
    hostile = read_config(CONFIGS / "digits-vi.toml", terms).model_copy(update={"evaluation": sets})
    with np.errstate(over="ignore"):
        fit(hostile, None, folder / "store", silent)
    chains = ("warmup=30", "samples=40", "draws=20", "chains=2", "reports=1", "name=boxes", "max_tree_depth=4")
    fit(read_config(CONFIGS / "boxes-nuts.toml", chains), None, folder / "store", silent)
    lines = [f"{a:.4f},{b:.4f},{'uv'[k]},{a + 2 * k + 0.1 * c:.4f}" for a, b, c, k in rows_of_a_table(rng)]
    (folder / "table.csv").write_text("\n".join(["first,second,kind,<i>target</i>", *lines]) + "\n")
    columns = ("likelihood=normal", "target=<i>target</i>", 'categorical=["kind"]', "name=table", "inputs=standardize")
    regression = (f"source={folder / 'table.csv'}", 'calibration.decision="std"', *columns, "percentile=90", *small)
    fit(read_config(CONFIGS / "digits-vi.toml", regression), None, folder / "store", silent)
    return folder


SETS = {HOSTILE[1]: "far", "$x_{": "near", "too far": "infinite"}


def rows_of_a_table(rng):
    """Two numbers, noise and a kind."""
    return [(*rng.normal(size=3), int(rng.integers(2))) for _ in range(240)]


# ---- what is there ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits", [*OF_CLASSES, *OF_SCORES, "loss"]),
        ("wave", ["band", *OF_NUMBERS, *OF_SCORES, *OF_CHAINS]),
        ("hostile", [*OF_CLASSES, "decision", "roc", "scores", "loss"]),
        ("boxes", [*OF_CLASSES, *OF_SCORES, *OF_CHAINS]),
        ("table", ["predicted", *OF_NUMBERS, *OF_SCORES, "loss"]),
    ],
)
def test_a_page_has_the_pictures_of_its_kind_and_nothing_that_runs(store, home, name, expected):
    """Balanced HTML, headings in the order of a decision, each picture described, nothing fetched, nothing run."""
    page, content, manifest = page_of(home / "store" if name in {"hostile", "boxes", "table"} else store, name)
    assert content.startswith("<!doctype html>")
    assert page.open == []
    assert named(page) == expected
    order = ["Verdict", "On the test part", "Where it says “I don't know”", "The fit", "Settings and data"]
    assert [heading for heading in page.headings if heading in order] == order
    assert not {"script", "link", "iframe", "object", "embed", "image", "style"} & set(page.tags) - {"style"}
    assert page.tags.count("style") == 1
    assert not [key for key, _ in page.attributes if key.startswith("on") or key in {"src", "srcset", "action"}]
    targets = [value for key, value in page.attributes if key.endswith("href")]
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(set(ids)) == len(ids)
    references = re.findall(r"url\(#([^)]+)\)", content)
    assert {target.removeprefix("#") for target in targets} | set(references) <= set(ids)
    assert all(target.startswith("#") for target in targets)
    assert content.count("url(") == len(references)
    assert "://" not in content
    assert "http:" not in content
    assert "https:" not in content
    assert not re.search(r"[\"'<;]\s*javascript:", content)
    assert len(content.encode()) < 600_000
    used = set(re.findall(r"var\((--[\w-]+)\)", content))
    assert used <= set(re.findall(r"(--[\w-]+):", content))
    assert ("Not fit to be relied on" in page.texts) == bool(manifest.shortfalls)
    assert any(text.startswith("Nothing falls short") for text in page.texts) != bool(manifest.shortfalls)
    assert ("Worth knowing" in page.texts) == bool(manifest.notes)
    for message in (*texts(manifest.shortfalls), *manifest.notes, f"{name}:1", manifest.data.fingerprint):
        assert any(message in text for text in page.texts), message


def test_descriptions_of_classes_have_the_numbers_of_the_manifest(store):
    """ECE, accuracy of what is accepted, thresholds and reject rates are those of the manifest."""
    page, content, manifest = page_of(store, "digits")
    described = dict(zip(named(page), page.pictures, strict=True))
    metrics = manifest.metrics
    assert f"expected calibration error {metrics['ece']:.4f}" in described["reliability"]
    assert f"threshold {manifest.calibration.thresholds['mutual_information']:.4g}" in described["decision"]
    assert f"test rows: {metrics['reject_rate']['reject']:.2%} of 359 rows" in described["decision"]
    for name, limit in manifest.calibration.thresholds.items():
        assert f"{name.replace('_', ' ')} {limit:.4g}" in described["scores"]
    found = evaluate_version(store, "digits:1", "digits", None, {}).to_json()
    assert f"{found['accepted']['rows']} accepted, accuracy {found['accepted']['accuracy']:.2%}" in described["risk"]
    assert f"{found['rejected']['rows']} rejected" in described["risk"]
    last = manifest.diagnostics["reports"][-1]
    assert f"accuracy is {last['train_accuracy']:.4g} on training rows." in described["loss"]
    assert any(text == f"{metrics['accuracy']:.2%}" for text in page.texts)
    baseline = metrics["baseline"]
    assert f"of 359 test rows; {baseline['accuracy']:.2%} if always “{baseline['class']}”" in page.texts
    assert f"{baseline['nll']:.4g}" in page.texts
    # Every class is right more often than not.
    assert min(own["accuracy"] for own in found["per_class"].values()) > 0.5
    assert "<details><summary>Class by class" in content


def test_descriptions_of_chains_have_the_diagnostics(store):
    """R-hat and ESS of function space; the histograms' worst R-hat is the manifest's."""
    page, _, manifest = page_of(store, "wave")
    described = dict(zip(named(page), page.pictures, strict=True))
    function = manifest.diagnostics["function"]
    assert f"the worst agreement of chains (R-hat {function['rhat']:.3f})" in described["ranks"]
    sizes = f"least bulk ESS {function['ess_bulk']:.0f}, least tail ESS {function['ess_tail']:.0f}; limits 1.01 and 400"
    assert f"worst R-hat {function['rhat']:.3f}, {sizes}" in described["agreement"]
    assert any(f"the worst R-hat is {function['rhat']:.3f}" in text for text in page.texts)
    assert f"{manifest.metrics['coverage_95']:.1%} of the test rows within the 95 % band" in described["band"]
    low, high = re.search(r"from (\S+) to (\S+), trained between", described["band"]).groups()
    least, most = re.search(r"trained between (\S+) and (\S+):", described["band"]).groups()
    quarter = (float(most) - float(least)) / 4
    assert [float(low), float(high)] == pytest.approx([float(least) - quarter, float(most) + quarter], abs=2e-3)


def test_ood_figures_are_those_of_evaluation(home):
    """AUROC and detection of the decision and of every score: in the manifest, in words and in the table; also of rows at
    the edge of float32.
    """
    page, _, manifest = page_of(home / "store", "hostile")
    described = dict(zip(named(page), page.pictures, strict=True))
    sets = {name: str(home / f"{path}.npz") for name, path in SETS.items()}
    found = evaluate_version(home / "store", "hostile", str(home / "rows.npz"), None, sets).to_json()
    assert found["notes"] == []
    assert {name for name in manifest.metrics["ood"] if not name.endswith("_same_intensity")} == set(sets)
    assert found["ood_rows"].items() <= manifest.metrics["ood_rows"].items()
    cells = [text for text in page.texts if re.fullmatch(r"[01]\.\d{3}", text)]
    for name, scores in found["ood"].items():
        own = manifest.metrics["ood"][name]
        assert own["reject"].keys() == scores["reject"].keys()
        for figure, value in scores["reject"].items():
            assert own["reject"][figure] == pytest.approx(value), figure
        assert own.keys() == scores.keys()
        for score, figures in scores.items():
            assert own[score]["auroc"] == pytest.approx(figures["auroc"])
            assert own[score]["detection"] == figures["detection"]
            assert f"{figures['auroc']:.3f}" in cells
        readable = name.replace("_same_intensity", ", same intensity").replace("x_", "x ")
        assert f"{readable}: AUROC of the decision {scores['reject']['auroc']:.3f}" in described["roc"]


def test_hostile_names_are_shown_as_text(home):
    """Classes, OOD sets and targets: text, never a tag; a formula is not typeset; the font may lack letters of a name."""
    page, _, manifest = page_of(home / "store", "hostile")
    assert manifest.model.class_names == HOSTILE
    for name in HOSTILE:
        assert name in page.texts
    assert any("$x {" in text for text in page.texts)
    page, *_ = page_of(home / "store", "table")
    assert "true <i>target</i>" in page.texts
    assert "i" not in page.tags


def test_every_text_of_a_manifest_is_escaped(store, tmp_path):
    """Names, settings, notes and packages of a manifest are text in the page, whoever wrote them, also in attributes."""
    bundle = load(store / "digits" / "1")
    harm = {
        place: f"{place} </style></svg><i onload=alert(1)>'\"&{{{{ 7 * 7 }}}}"
        for place in (
            "note",
            "shortfall",
            "method",
            "source",
            "package",
            "commit",
            "created",
            "setting",
            "metric",
            "score",
        )
    }
    manifest = bundle.manifest
    calibration = manifest.calibration
    written = manifest.model_copy(
        update={
            "notes": (harm["note"],),
            "shortfalls": (recognise(harm["shortfall"]),),
            "method": manifest.method.model_copy(update={"kind": harm["method"], "settings": {"at": harm["setting"]}}),
            "data": manifest.data.model_copy(update={"source": harm["source"]}),
            "packages": {harm["package"]: harm["package"]},
            "git_commit": harm["commit"],
            "created": harm["created"],
            "metrics": {harm["metric"]: 0.5},
            "calibration": calibration.model_copy(
                update={"thresholds": {**calibration.thresholds, harm["score"]: 0.25}}
            ),
        }
    )
    assert write_report(tmp_path / "report.html", written, bundle.calibration) == ()
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.open == []
    assert "i" not in page.tags
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    texts = " ".join(page.texts)
    for text in harm.values():
        assert text in texts
    assert f"{harm['score']} 0.25" in page.pictures[named(page).index("scores")]


def test_templates_escape_all_but_sections_and_drawings():
    """Only HTML that Jinja has escaped and XML that the SVG writer has made are marked safe; no name may be missing."""
    marked = [
        (path.name, expression)
        for path in TEMPLATES.glob("*.html")
        for expression in re.findall(r"(\S+)\s*\|\s*safe\b", path.read_text("utf-8"))
    ]
    assert sorted(marked) == [("macros.html", "picture.drawing.content"), ("page.html", "section.html")]
    assert not [path for path in TEMPLATES.glob("*.html") if "autoescape" in path.read_text("utf-8")]
    assert environment().from_string("{{ name }}").render(name="<b>") == "&lt;b&gt;"
    with pytest.raises(UndefinedError, match="nothing"):
        environment().from_string("{{ page.nothing }}").render(page=build_heading)


def test_a_number_that_cannot_be_shown_costs_its_section_alone(store, tmp_path):
    """The reason is in the section's place; all others are there."""
    bundle = load(store / "wave" / "1")
    facts = bundle.manifest.diagnostics
    broken = {**facts, "function": {**facts["function"], "ess_bulk": None}}
    manifest = bundle.manifest.model_copy(update={"diagnostics": broken})
    (sentence,) = write_report(tmp_path / "report.html", manifest, bundle.calibration)
    assert sentence.startswith("The report's section “The fit” could not be made: TypeError")
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert named(page) == ["scores"]
    assert sum(sentence in text for text in page.texts) == 2


def test_a_fit_without_ood_sets_says_how_to_give_some(store):
    """A sentence stands in place of the curves."""
    page, _, manifest = page_of(store, "digits")
    assert any(
        text.startswith("No OOD set was given: name some in the config under [evaluation] ood") for text in page.texts
    )
    assert "ood" not in manifest.metrics


# ---- what is refused, and what changes nothing -----------------------------------------------------------------------


def test_ood_sets_are_read_before_the_fit(home, run):
    """A set that is not there, or of another shape, costs no hours; and a config with an unknown key names it."""
    config = CONFIGS / "digits-vi.toml"
    for path, message in (
        ("nowhere.npz", "nowhere.npz: no such file"),
        (str(home / "far.npz"), "rows: expected shape (8, 8), found shape (4, 3)"),
    ):
        code, _, err = run("fit", config, "--store", home / "none", "--set", f"evaluation.ood.far={path}")
        assert code == 1
        assert message in err
    code, _, err = run("fit", config, "--store", home / "none", "--set", "evaluation.sets=1")
    assert code == 1
    assert "unknown key 'evaluation.sets'" in err
    assert "expected one of ood" in err


def test_ood_sets_change_no_draw_and_no_threshold(home):
    """The same fit without them has the same draws and the same calibration."""
    before = load(home / "store" / "hostile" / "1")
    small = ("data.test_size=60", "data.calibration_size=60", "steps=150", "draws=12", "reports=2", "hidden=[8]")
    terms = (f"source={home / 'rows.npz'}", "name=hostile", "percentile=90", "inputs=none", *small)
    fit(read_config(CONFIGS / "digits-vi.toml", terms), None, home / "again", silent)
    after = load(home / "again" / "hostile" / "1")
    assert after.manifest.calibration == before.manifest.calibration
    draws = (jax.tree.leaves(bundle.posterior.draws) for bundle in (before, after))
    scores = (bundle.calibration.scores.values() for bundle in (before, after))
    for mine, its in (*zip(*draws, strict=True), *zip(*scores, strict=True)):
        np.testing.assert_array_equal(mine, its)
    kept = {key: value for key, value in before.manifest.metrics.items() if key not in {"ood", "ood_rows"}}
    assert after.manifest.metrics == kept


# ---- a new calibration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["fitted with", "new"])
def test_a_recalibrated_version_says_what_it_has_not(store, tmp_path, given):
    """The fit's data give all plots except the ranks, new rows only the scores; each missing plot has its reason."""
    home = tmp_path / "store"
    shutil.copytree(store / "wave", home / "wave")
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (150, 1))
    np.savez(tmp_path / "new.npz", x=x, y=x[:, 0] * np.sin(5 * x[:, 0]))
    where = "wave" if given == "fitted with" else str(tmp_path / "new.npz")
    np.savez(tmp_path / "far.npz", x=x + 4)
    calibrate_version(home, "wave", where, ("percentile=90",), {"far": str(tmp_path / "far.npz")})
    page, _, manifest = page_of(home, "wave", 2)
    own = ["band", *OF_NUMBERS, "decision", "roc", "scores"] if given == "fitted with" else ["scores"]
    assert named(page) == [*own, "trace"]
    absent = " ".join(page.texts)
    assert "see the report of wave:1" in absent
    assert ("plots are in the report of wave:1" in absent) == ("have no test part" in absent) == (given == "new")
    assert ("OOD sets are compared with a test part" in absent) == (given == "new")
    assert ("ood" in manifest.metrics) == (given == "fitted with")
    assert ("reject_rate" in manifest.metrics) == (given == "fitted with")


def test_calibrate_takes_ood_sets_on_the_command_line(home, run, tmp_path):
    """`--ood NAME=PATH`, each name once; what was known of other sets is not kept."""
    copied = shutil.copytree(home / "store", tmp_path / "store")
    command = ("calibrate", "hostile", "--data", home / "rows.npz", "--store", copied, "--percentile", "80")
    code, _, err = run(*command, "--ood", f"a={home / 'far.npz'}", "--ood", f"a={home / 'near.npz'}")
    assert code == 2
    assert "each NAME once" in err
    code, out, err = run(*command, "--ood", f"a={home / 'far.npz'}")
    assert (code, out) == (0, "hostile:2\n"), err
    page, _, manifest = page_of(copied, "hostile", 2)
    assert manifest.metrics["ood_rows"] == {"a": 60, "a_same_intensity": 60}
    assert "roc" in named(page)
    code, out, _ = run(*command)
    assert (code, out) == (0, "hostile:3\n")
    assert "ood" not in read_manifest(copied / "hostile" / "3").metrics


# ---- the reliability diagram in the manifest -------------------------------------------------------------------------


def test_the_manifests_bins_give_its_ece(store):
    """Fifteen bins that hold all test rows; their gaps, weighted by rows, are the ECE. `show` leaves them out."""
    metrics = read_manifest(store / "digits" / "1").metrics
    bins = metrics["reliability"]
    rows = np.array(bins["rows"])
    assert (len(rows), rows.sum()) == (15, 359)
    gaps = np.abs(np.array(bins["accuracy"]) - np.array(bins["confidence"]))
    assert (gaps * rows).sum() / rows.sum() == pytest.approx(metrics["ece"])
    assert np.all(np.array(bins["low"]) <= bins["confidence"])
    assert np.all(np.array(bins["confidence"]) <= bins["high"])
    assert bins["low"][1:] >= bins["high"][:-1]
    assert (np.array(bins["accuracy"]) * rows).sum() / rows.sum() == pytest.approx(metrics["accuracy"])


def test_bins_do_not_depend_on_the_order_of_tied_rows():
    """Rows that share their confidence share their accuracy, whichever bin they are in."""
    confidence = np.array([0.5] * 30 + [0.9] * 10)
    correct = np.array([True] * 15 + [False] * 15 + [True] * 10)
    forwards, backwards = reliability_bins(confidence, correct), reliability_bins(confidence[::-1], correct[::-1])
    assert forwards == backwards
    assert forwards.accuracy[0] == 0.5
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.1 * 10 / 40)


def test_show_and_the_lines_of_a_fit_leave_tables_out(store, run):
    """A diagram is not for a terminal; as JSON it is there."""
    code, out, _ = run("show", "digits:1", "--store", store)
    assert code == 0
    assert "reliability" not in out
    code, out, _ = run("show", "digits:1", "--store", store, "--json")
    assert len(json.loads(out)["metrics"]["reliability"]["rows"]) == 15


def test_a_version_from_before_has_a_report_of_what_there_is(store, tmp_path):
    """A manifest without the newer metrics loads, and a page is written from it and its calibration alone."""
    bundle = load(store / "digits" / "1")
    old = bundle.manifest.model_copy(
        update={"metrics": {key: value for key, value in bundle.manifest.metrics.items() if key != "reliability"}}
    )
    write_report(tmp_path / "report.html", old, bundle.calibration)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert named(page) == ["scores", "loss"]
    assert "This report was made without the test part." in page.texts


def test_what_cannot_be_drawn_costs_no_report(store, tmp_path, monkeypatch):
    """The reason stands in the picture's place, under what is worth knowing, and goes into the manifest's notes."""
    bundle = load(store / "digits" / "1")

    def broken(*_):
        raise ValueError("Too many bins <b> for the data")

    monkeypatch.setattr("abstain.training.report.ood_plots.draw_scores", broken)
    monkeypatch.setattr("abstain.training.report.page.build_settings", broken)
    picture, section = write_report(tmp_path / "report.html", bundle.manifest, bundle.calibration)
    assert picture.startswith(
        "The picture “scores” could not be made: ValueError: Too many bins <b> for the data (in broken)"
    )
    assert section.startswith("The report's section “Settings” could not be made: ValueError")
    content = (tmp_path / "report.html").read_text("utf-8")
    page = Page(content)
    assert "<b> for" not in content
    assert named(page) == ["loss"]
    assert sum(text.startswith(picture) for text in page.texts) == 2
    assert sum(text.startswith(section) for text in page.texts) == 2
