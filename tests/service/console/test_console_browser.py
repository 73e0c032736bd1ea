"""The console as people use it: in headless Chromium, with a mouse, a finger's width, and a keyboard alone.

No test waits for a while: each waits for what it wants to see.
"""

import json
import math
import re
import shutil

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from abstain.models.bundles.store import set_label
from abstain.training.config.reading import read_config
from abstain.training.fit import fit
from tests.helpers.fits import silent
from tests.helpers.paths import CONFIGS
from tests.helpers.processes import PATIENCE
from tests.helpers.servers import start_server, stop_server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
STRANGE_CITY = "<img src=x onerror=alert(1)>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
expect = playwright.expect


# ---- what is served, and a browser to look at it ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server of the demo's digits, a table with categories, and a regression."""
    root, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("run")
    fit(read_config(CONFIGS / "digits-vi.toml", ("reports=1",)), None, root, silent)
    set_label(root, "digits", 1, "stable")
    fit(table_config(folder), None, root, silent)
    wave = ("warmup=100", "samples=100", "draws=20", "hidden=[4]", "chains=2", "reports=1")
    fit(read_config(CONFIGS / "wave-nuts.toml", wave), None, root, silent)
    running = start_server(root, folder)
    yield running.url
    stop_server(running)


def table_config(folder):
    """A classifier of a table with a number and a category; one city has a name that is markup."""
    rng = np.random.default_rng(0)
    cities = ["Bern", "Zug", STRANGE_CITY]
    lines = ["age,city,risk"]
    for age, city in zip(rng.integers(20, 80, 400), rng.integers(0, 3, 400), strict=True):
        lines.append(f"{age},{cities[city]},{'high' if age + 10 * city > 55 else 'low'}")
    (folder / "table.csv").write_text("\n".join(lines))
    (folder / "table.toml").write_text(f"""
name = "table"
seed = 0
draws = 10
likelihood = "categorical"
network = {{ kind = "mlp", hidden = [8], activation = "tanh" }}
prior = {{ scale = 1.0 }}
method = {{ kind = "vi", steps = 200, batch_size = 64, learning_rate = 1e-2, reports = 1 }}
calibration = {{ percentile = 99.0, coverage = 0.9 }}

[data]
source = "{folder / "table.csv"}"
target = "risk"
categorical = ["city"]
calibration_size = 120
test_size = 40
""")
    return read_config(folder / "table.toml")


@pytest.fixture(scope="module")
def chromium():
    """One browser."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, site):
    """Opens the console; at the test's end, nothing may have gone wrong in it or have been asked of another host."""
    contexts, wrong, elsewhere = [], [], []

    def note(request):
        if not request.url.startswith((f"{site}/", "data:")):
            elsewhere.append(request.url)

    def opened(view="try/digits:1", before=None, refused=False, **context):
        contexts.append(chromium.new_context(**context))
        page = contexts[-1].new_page()

        def hear(message):
            # Of a refusal the browser itself makes a note.
            if message.type in {"error", "warning"} and not (refused and "status of 400" in message.text):
                wrong.append(message.text)

        page.on("console", hear)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", note)
        if before:
            before(page)
        page.goto(f"{site}/#{view}")
        expect(page.locator("nav a[aria-current]")).to_have_attribute("data-view", view.split("/")[0])
        return page

    yield opened
    for context in contexts:
        context.close()
    assert (wrong, elsewhere) == ([], [])


def arc(x, y, rx, ry, start, stop):
    """Points along an ellipse's arc, in degrees: 0 is to the right, 90 down."""
    return [
        (x + rx * math.cos(math.radians(turn)), y + ry * math.sin(math.radians(turn)))
        for turn in np.linspace(start, stop, 16)
    ]


STROKES = {
    "0": [arc(0.5, 0.5, 0.24, 0.38, -90, 270)],
    "3": [[*arc(0.46, 0.32, 0.2, 0.18, -150, 90), *arc(0.46, 0.68, 0.24, 0.18, -90, 150)]],
    "B": [
        [(0.3, 0.14), (0.3, 0.86)],
        [(0.3, 0.14), *arc(0.48, 0.32, 0.2, 0.18, -90, 90), (0.3, 0.5)],
        [(0.3, 0.5), *arc(0.48, 0.68, 0.24, 0.18, -90, 90), (0.3, 0.86)],
    ],
}


def draw(page, name, scale=1.0, shift=0.0):
    """Draws with the mouse, stroke by stroke; returns the answer to the last stroke."""
    box = page.locator("#pad").bounding_box()
    for place, stroke in enumerate(STROKES[name]):
        points = [
            (box["x"] + (scale * x + shift) * box["width"], box["y"] + (scale * y + shift) * box["height"])
            for x, y in stroke
        ]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        if place < len(STROKES[name]) - 1:
            with page.expect_response("**/predict"):
                page.mouse.up()
    with page.expect_response("**/predict") as answer:
        page.mouse.up()
    return answer.value.json()["predictions"][0]


# ---- try it ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0", "3"])
def test_a_digit_drawn_with_the_mouse_is_accepted_and_named(opened, name):
    """The verdict says which, and what stands beside it is what the server said."""
    page = opened()
    answer = draw(page, name)
    assert (answer["label"], answer["reject"]) == (name, False)
    expect(page.locator("#verdict .word")).to_have_text(f"accepted: {name}")
    expect(page.locator("#verdict")).to_contain_text("mutual information")
    rows = page.locator("#probabilities tbody tr")
    expect(rows).to_have_count(10)
    for place, (mean, std) in enumerate(zip(answer["probabilities"], answer["std"], strict=True)):
        expect(rows.nth(place)).to_have_text(f"{place}{mean:.2f}± {std:.2f}")
    shown = [page.locator("#split dd").nth(place).inner_text().split()[0] for place in range(3)]
    expected = [answer["mutual_information"], answer["aleatoric_entropy"], answer["entropy"]]
    np.testing.assert_allclose([float(text.replace("−", "-")) for text in shown], expected, atol=5e-3)


def test_the_letter_b_drawn_with_the_mouse_is_rejected(opened):
    """I don't know, with the reason in words, and the decision score beyond its threshold first of all scores."""
    page = opened()
    answer = draw(page, "B")
    assert answer["reject"] is True
    expect(page.locator("#verdict .word")).to_have_text("I don’t know")
    beyond = (
        "Stranger than every one of the calibration rows. " * answer["scores"]["mutual_information"]["extrapolated"]
    )
    none_fits = "No class fits at a coverage of 90 %. " * (answer["prediction_set"] == [])
    expect(page.locator("#verdict .why")).to_have_text(
        f"Mutual information above its 99th percentile. {beyond}{none_fits}"
        f"Forced to choose, it would say {answer['label']}."
    )
    first = page.locator("#scores .strip").first
    expect(first).to_have_attribute("data-score", "mutual_information")
    expect(first).to_contain_text("above its threshold")
    sizes = page.locator("#scores .strip .plot").evaluate_all("all => all.map(plot => plot.clientHeight)")
    assert sizes[0] > 2 * max(sizes[1:])


def test_a_small_drawing_in_a_corner_is_the_same_digit(opened):
    """Where and how large one draws does not matter: the image is fitted as the training images were."""
    page = opened()
    large = draw(page, "3")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#verdict .word")).to_have_text("Nothing asked yet")
    small = draw(page, "3", scale=0.5, shift=0.05)
    assert small["label"] == "3"
    assert small["reject"] is False
    np.testing.assert_allclose(small["probabilities"], large["probabilities"], atol=0.2)


def test_another_percentile_changes_the_verdict(opened):
    """And one that the calibration is too small for is refused in the server's own words, until it is mended."""
    page = opened(refused=True)
    draw(page, "B")
    page.get_by_label("above the percentile").fill("99.99")
    page.get_by_label("above the percentile").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("needs a larger calibration split")
    page.get_by_label("above the percentile").fill("50")
    page.get_by_label("above the percentile").press("Enter")
    expect(page.locator("#verdict .why")).to_contain_text("above its 50th percentile")
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_row_of_features_is_edited(opened):
    """Numbers and categories by their names; a range that is left is said, a hole is not sent."""
    page = opened("try/table:1")
    word = page.locator("#verdict .word")
    expect(word).to_contain_text("accepted")
    with page.expect_request("**/predict") as asked:
        page.get_by_label("city").select_option("Zug")
    order = page.get_by_label("city").locator("option").all_inner_texts()
    assert set(order) == {"Bern", "Zug", STRANGE_CITY}
    assert json.loads(asked.value.post_data)["inputs"][0][1] == order.index("Zug")
    with page.expect_request("**/predict") as asked:
        page.get_by_label("age", exact=True).fill("900")
    assert json.loads(asked.value.post_data)["inputs"][0] == [900, order.index("Zug")]
    expect(word).to_have_text("I don’t know")
    expect(page.locator("#verdict .why")).to_contain_text("age")
    page.get_by_label("age", exact=True).fill("")
    expect(word).to_have_text("Nothing asked yet")
    page.get_by_text("Paste a row").click()
    page.get_by_label("2 values").fill("30, Bern")
    expect(word).to_contain_text("accepted")
    expect(page.get_by_label("age", exact=True)).to_have_value("30")
    page.get_by_label("2 values").fill("30, Atlantis")
    expect(page.get_by_role("alert")).to_contain_text("found Atlantis")


def test_a_regression_shows_its_interval(opened, site):
    """Mean, interval and quantiles, as the server says them."""
    page = opened("try/wave:1")
    expect(page.locator("#verdict .word")).to_contain_text("accepted")
    with page.expect_response("**/predict") as answered:
        page.get_by_label("feature 0").fill("0.5")
    answer = answered.value.json()["predictions"][0]
    expect(page.locator("#interval div").filter(has_text="mean")).to_contain_text(f"{answer['mean']:.3f}")
    lower, upper = (f"{end:.3f}".replace("-", "−") for end in answer["interval"])
    expect(page.locator("#interval div").filter(has_text="interval, 90")).to_contain_text(f"{lower} to {upper}")
    page.get_by_role("button", name="Far outside the training rows").click()
    expect(page.locator("#verdict .word")).to_have_text("I don’t know")


ROWS = "the calibration rows"


@pytest.mark.parametrize(
    ("view", "place", "fitting", "changes", "said"),
    [
        ("digits", 98.6, [], {}, f"By mutual information it is stranger than 98.6 % of {ROWS}, close to the limit of 99 %."
         " No class fits at a coverage of 90 %."),
        ("digits", 41.04, ["3"], {},
         f"By mutual information it is stranger than 41.0 % of {ROWS}, within the limit of 99 %."),
        ("digits", 98.96, ["3"], {"per_class": True},
         f"By mutual information it is stranger than 98.96 % of {ROWS} that are predicted as LABEL, close to the limit "
         "of 99 %."),
        ("digits", 0.0, ["3"], {},
         f"By mutual information it is stranger than none of {ROWS}, within the limit of 99 %."),
        ("table", 98.6, ["low"], {},
         f"By its scores together it is stranger than 98.6 % of {ROWS}, close to the limit of 99 %."),
        ("wave", 98.6, None, {},
         f"By std it is stranger than 98.6 % of {ROWS}, close to the limit of 99 %."),
    ],
)  # fmt: skip
def test_an_accepted_row_is_told_how_close_it_is_to_the_limit(opened, view, place, fitting, changes, said):
    """By one score, per class, by several, and of a number; never that a strange row is familiar."""
    labels = []

    def answer(route):
        told = route.fetch().json()
        row = told["predictions"][0]
        scores = row["scores"]
        decision = next(scores[name] for name in ("combined", "mutual_information", "std") if name in scores)
        decision |= {"percentile": place, "p_value": 1 - place / 100, "extrapolated": False}
        row |= {"reject": False, "reasons": []} | ({} if fitting is None else {"prediction_set": fitting})
        labels.append(row.get("label"))
        route.fulfill(json=told)

    def describe(route):
        route.fulfill(json=route.fetch().json() | changes)

    def mock(page):
        page.route("**/predict", answer)
        page.route("**/console/models/*/versions/1", describe)

    page = opened(f"try/{view}:1", before=mock)
    if view == "digits":
        draw(page, "3")
    expect(page.locator("#verdict .word")).to_contain_text("accepted")
    expect(page.locator("#verdict .why")).to_have_text(said.replace("LABEL", str(labels[-1])))
    expect(page.locator("#verdict.doubtful")).to_have_count(int("close to" in said))


def test_a_version_whose_fit_fell_short_has_a_banner_in_both_views(opened):
    """With the shortfalls one step away; a sound version has none. `wave` has chains that are far too short."""
    page = opened("try/wave:1")
    banner = page.locator("#unsound")
    expect(banner).to_contain_text("Not fit to be relied on")
    banner.get_by_role("link", name="What it fell short in").click()
    expect(page.locator("#described .shortfall")).to_contain_text("Not fit to be relied on")
    expect(page.locator("#versions tr").filter(has_text="wave:1")).to_contain_text("fell short")
    page.get_by_label("Model and version").select_option("digits:1")
    expect(page.locator("#described .shortfall")).to_have_count(0)
    page.get_by_role("link", name="Try it").click()
    expect(banner).to_be_hidden()


def test_text_of_the_server_is_only_text(opened):
    """A category that is named like an element is not one."""
    page = opened("try/table:1")
    expect(page.get_by_label("city").locator("option", has_text=STRANGE_CITY)).to_have_count(1)
    assert page.locator("img").count() == 0


# ---- the way from strokes to pixels ----------------------------------------------------------------------------------


def pixels(page, strokes, rows, high):
    """What `drawing.js` makes of strokes, as an array; None where it makes nothing."""
    made = page.evaluate(
        "async ([strokes, terms]) => (await import('/console/drawing.js')).image(strokes, terms)",
        [strokes, {"rows": rows, "columns": rows, "low": 0, "high": high}],
    )
    return None if made is None else np.reshape(made, (rows, rows))


def test_images_are_made_as_those_of_mnist(opened):
    """In a box of 20×20, its mass in the middle of 28×28, wherever and however large it was drawn."""
    page = opened()
    for name, strokes in STROKES.items():
        image = pixels(page, strokes, 28, 255)
        assert 0 <= image.min() < image.max() == 255
        rows, columns = np.nonzero(image)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in {20, 21}, name
        weights = image / image.sum()
        centre = [(weights.sum(axis=1) * np.arange(28)).sum(), (weights.sum(axis=0) * np.arange(28)).sum()]
        np.testing.assert_allclose(centre, 13.5, atol=0.3)
        moved = [[(0.2 * x + 7, 0.2 * y - 3) for x, y in stroke] for stroke in strokes]
        np.testing.assert_allclose(pixels(page, moved, 28, 255), image, atol=255 / 16 + 1e-9)


def test_images_are_made_as_those_of_the_small_digits(opened):
    """Counts of 4×4 dots from 0 to 16, over the whole height, with the ink that the training images have."""
    page = opened()
    for name, strokes in STROKES.items():
        image = pixels(page, strokes, 8, 16)
        assert set(np.unique(image)) <= set(range(17))
        assert (image.sum(axis=1) > 0).all(), name
        assert 290 <= image.sum() <= 355, name


def test_no_strokes_make_no_image(opened):
    """And a dot makes one with ink in its middle."""
    page = opened()
    assert pixels(page, [], 28, 255) is None
    assert pixels(page, [[(0.1, 0.9)]], 28, 255)[13:15, 13:15].min() == 255
    assert np.isfinite(pixels(page, [[(0.1, 0.5), (0.9, 0.5)]], 8, 16)).all()


# ---- watch it --------------------------------------------------------------------------------------------------------


def test_the_watch_view_shows_the_requests_just_made(opened, site):
    """Rows and rejections are those that were answered, since the server's start and the page's; drift comes soon."""
    page = opened("watch/digits:1")
    expect(page.locator("#pulse")).to_contain_text("read at")
    rows = np.random.default_rng(3).integers(0, 17, (40, 64)).tolist()
    for _ in range(3):
        told = httpx.post(f"{site}/predict", json={"inputs": rows, "model": "digits"}, timeout=PATIENCE).json()[
            "predictions"
        ]
    families = {
        family.name: family
        for family in text_string_to_metric_families(httpx.get(f"{site}/metrics", timeout=PATIENCE).text)
    }

    def counted(name):
        return sum(
            sample.value
            for sample in families[name].samples
            if sample.name == f"{name}_total" and sample.labels["model"] == "digits"
        )

    assert any(row["reject"] for row in told)
    expect(page.locator("#rows")).to_have_text(f"{counted('abstain_rows'):.0f}")
    share = counted("abstain_rejected") / counted("abstain_rows")
    expect(page.locator("#reject-rate")).to_have_text(f"{100 * share:.1f} %")
    expect(page.locator("#median")).to_contain_text("ms")
    expect(page.locator("#spread tbody tr")).to_have_count(12)
    expect(page.locator("#drift tbody tr").first).to_be_visible(timeout=15_000)
    page.get_by_label("since this page was opened").check()
    expect(page.locator("#rows")).to_have_text("120")
    assert page.locator(".u-wrap canvas").count() >= 3


def test_drift_is_shown_where_it_is_measured(opened):
    """The log martingale, the other two, and since when the alarm rings; by the names of the metrics."""
    told = """
abstain_drift_alarm_level 4.6
abstain_drift_log_martingale{model="digits",version="1",score="entropy"} 7.25
abstain_drift_log_martingale{model="digits",version="1",score="std"} -0.5
abstain_drift_log_martingale{model="other",version="1",score="std"} 99
abstain_drift_crossed_timestamp_seconds{model="digits",version="1",score="entropy"} 1.7e9
abstain_drift_psi{model="digits",version="1",score="entropy"} 0.31
abstain_drift_ks{model="digits",version="1",score="entropy"} 0.22
"""

    def measured(page):
        def answer(route):
            response = route.fetch()
            lines = [line for line in response.text().splitlines() if "abstain_drift_" not in line]
            route.fulfill(response=response, body="\n".join(lines) + told)

        page.route("**/metrics", answer)

    page = opened("watch/digits:1", before=measured)
    rows = page.locator("#drift tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("entropy7.250.3100.220since")
    expect(rows.nth(1)).to_contain_text("std−0.500needs 300 rowsneeds 300 rowsnone")
    expect(page.locator("#drift")).to_contain_text("Alarm at 4.60.")
    expect(page.locator("#chart-drift canvas")).to_have_count(1)


def test_a_pause_stops_the_reading(opened):
    """While it is paused no metrics are asked for, however long; then they are again."""
    asked = []

    def counting(page):
        page.clock.install()
        page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/metrics") else None)

    page = opened("watch/digits:1", before=counting)
    expect(page.locator("#pulse")).to_contain_text("read at")
    button = page.get_by_role("button", name="Pause")
    button.click()
    expect(page.locator("#pulse")).to_have_text("paused")
    expect(page.get_by_role("button", name="Resume")).to_have_attribute("aria-pressed", "true")
    before = len(asked)
    page.clock.run_for(60_000)
    assert len(asked) == before
    with page.expect_request("**/metrics"):
        page.get_by_role("button", name="Resume").click()


def test_metrics_are_read_as_prometheus_reads_them(opened, site):
    """Every sample of a real exposition, and labels that are escaped; quantiles of a histogram by a straight line."""
    page = opened()
    httpx.post(f"{site}/predict", json={"inputs": [[0.0] * 64], "model": "digits"}, timeout=PATIENCE)
    text = httpx.get(f"{site}/metrics", timeout=PATIENCE).text + 'odd{name="a\\"b\\\\c\\nd"} 1.5e3\nbeyond +Inf\n'
    load = "async ([text, ...more]) => { const read = await import('/console/exposition.js'); "
    told = page.evaluate(
        load
        + "return [...read.parse(text)].map(([name, found]) => [name, found.map(s => [s.labels, String(s.value)])]); }",
        [text],
    )
    found = {(name, frozenset(labels.items())): float(value) for name, samples in told for labels, value in samples}
    expected = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found == expected
    levels = page.evaluate(
        load
        + "const histogram = { bounds: [1, 2, Infinity], counts: [2, 2, 0] };"
        + "return [0.25, 0.5, 1].map(level => read.quantile(histogram, level)); }",
        [""],
    )
    assert levels == [0.5, 1, 2]
    assert page.evaluate(load + "return read.quantile({ bounds: [1, 2], counts: [0, 0] }, 0.5); }", [""]) is None


# ---- the model -------------------------------------------------------------------------------------------------------


def test_the_model_view_tells_what_the_store_tells(opened, site):
    """Method, data, metrics, a dot for every bin of reliability, and every version with its labels and its report."""
    page = opened("model/digits:1")
    told = httpx.get(f"{site}/console/models/digits/versions/1", timeout=PATIENCE).json()
    described = page.locator("#described")
    expect(described).to_contain_text(f"{told['method']['kind']}, {told['draws']} draws")
    expect(described).to_contain_text(told["digest"])
    expect(described).to_contain_text(f"{told['metrics']['accuracy']:.3f}")
    expect(page.locator(".reliability circle")).to_have_count(len(told["reliability"]))
    expect(page.locator("#versions tbody tr")).to_have_count(3)
    expect(page.locator("#versions tbody tr").filter(has_text="digits:1")).to_contain_text("stable")
    page.get_by_role("link", name="The full report").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("digits:1")


def test_another_version_is_chosen_and_the_address_keeps_it(opened, site):
    """From the list; the page opened again by that address shows it, in that view."""
    page = opened()
    page.get_by_label("Model and version").select_option("wave:1")
    expect(page.get_by_label("feature 0")).to_be_visible()
    page.get_by_role("link", name="Model", exact=True).click()
    expect(page.get_by_role("heading", level=2, name="wave:1")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", level=2, name="wave:1")).to_be_visible()
    expect(page).to_have_title(re.compile(r"Model · wave:1"))


# ---- for everyone ----------------------------------------------------------------------------------------------------


def test_it_is_used_by_keyboard_alone(opened):
    """An example by Tab and Enter, pixels by arrows and space, a view by its link; what has the focus is seen to."""
    page = opened()
    focused = page.locator(":focus")

    def tab_to(locator):
        for _ in range(40):
            page.keyboard.press("Tab")
            if locator.evaluate("element => element === document.activeElement"):
                assert focused.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
                return
        pytest.fail("no Tab leads there")

    page.keyboard.press("Tab")
    expect(focused).to_have_text("Skip to content")
    tab_to(page.locator("#pixels"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#pixel-told")).to_have_text("row 2, column 2: 0 of 16")
    with page.expect_request("**/predict") as asked:
        page.keyboard.press("Space")
    row = json.loads(asked.value.post_data)["inputs"][0]
    assert [place for place, value in enumerate(row) if value] == [9]
    expect(page.locator("#pixel-told")).to_have_text("row 2, column 2: 16 of 16")
    tab_to(page.get_by_role("button", name="Example: the letter B"))
    page.keyboard.press("Enter")
    expect(page.locator("#verdict .word")).to_have_text("I don’t know")
    page.keyboard.press("Shift+Tab")
    for _ in range(4):
        page.keyboard.press("Shift+Tab")
    tab_to(page.get_by_role("button", name="Example: the digit 3"))
    page.keyboard.press("Space")
    expect(page.locator("#verdict .word")).to_have_text("accepted: 3")


def test_a_screen_reader_finds_its_way(opened):
    """Landmarks, one heading a view, a name for everything that is operated, a verdict that is spoken."""
    page = opened()
    draw(page, "3")
    for role in ("banner", "navigation", "main"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.locator("#verdict")).to_have_attribute("aria-live", "polite")
    for view in ("Try it", "Watch it", "Model"):
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(view)
        for control in page.locator(
            "button:visible, select:visible, input:visible, textarea:visible, canvas[role]:visible"
        ).all():
            named = control.evaluate(NAME_OF)
            assert named.strip(), control.evaluate("e => e.outerHTML")


@pytest.mark.parametrize("model", ["digits:1", "table:1", "wave:1"])
def test_a_phone_need_not_scroll_sideways(opened, model):
    """At 360 pixels, in every view, with an answer shown."""
    page = opened(f"try/{model}", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    if model == "digits:1":
        page.get_by_role("button", name="Example: the letter B").tap()
        expect(page.locator("#verdict .word")).to_have_text("I don’t know")
        page.get_by_text("other scores").tap()
        expect(page.locator(".multiples .strip").first).to_be_visible()
    else:
        expect(page.locator("#evidence h2").first).to_be_visible()
    for view in ("Try it", "Watch it", "Model"):
        page.get_by_role("link", name=view, exact=True).tap()
        expect(page.get_by_role("heading", level=1)).to_have_text(view)
        assert page.evaluate("document.documentElement.scrollWidth") == 360


NAME_OF = """
(element) => {
  const labels = [...(element.labels ?? [])].map((label) => label.textContent);
  return element.getAttribute("aria-label") || element.innerText || labels.join(" ");
}
"""
CONTRAST = """
() => {
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = (name) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/[0-9.]+/g).map(Number).map(channel);
    probe.remove();
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const inks = ["--ink", "--muted", "--accept", "--unknown"];
  const pairs = inks.flatMap((ink) => ["--paper", "--card"].map((paper) => [ink, paper]));
  pairs.push(["--accept", "--accept-soft"], ["--unknown", "--unknown-soft"]);
  pairs.push(["--ink", "--accept-soft"], ["--ink", "--unknown-soft"]);
  return pairs.map(([ink, paper]) => {
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    return [ink, paper, (a + 0.05) / (b + 0.05)];
  });
}
"""


def test_it_is_dark_where_the_system_is_and_a_choice_is_remembered(opened):
    """And its colours can be told apart in both themes (WCAG 2 AA, 4.5 to 1)."""
    page = opened(color_scheme="dark")
    paper = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    assert min(ratio for *_, ratio in page.evaluate(CONTRAST)) >= 4.5
    page.get_by_role("button", name="Switch to the light theme").click()
    light = page.evaluate(paper)
    assert light == "rgb(255, 255, 255)" != dark
    assert min(ratio for *_, ratio in page.evaluate(CONTRAST)) >= 4.5
    page.reload()
    expect(page.get_by_role("button", name="Switch to the dark theme")).to_be_visible()
    assert page.evaluate(paper) == light
    assert opened(color_scheme="light").evaluate(paper) == light


def test_nothing_moves_by_itself(opened):
    """No animation and no transition, for those who asked for none and for all others."""
    page = opened("watch/digits:1", reduced_motion="reduce")
    expect(page.locator("#pulse")).to_contain_text("read at")
    assert page.evaluate("document.getAnimations().length") == 0


def test_what_is_not_ready_is_said(opened):
    """A store without a version that answers, then one with: the page waits and goes on by itself."""
    waiting = []

    def loading(page):
        def answer(route):
            if waiting:
                route.continue_()
                return
            waiting.append(True)
            versions = [{"version": 1, "labels": [], "digest": None, "method": None, "state": "loading", "why": None}]
            route.fulfill(json={"models": [{"name": "digits", "versions": versions}]})

        page.route("**/models", answer)

    page = opened(before=loading)
    expect(page.locator("#notice")).to_be_hidden()
    assert waiting
    expect(page.get_by_label("Model and version")).to_be_enabled()
