"""The console in headless Chromium, with a mouse, on a narrow screen, and with only a keyboard.

No test waits for a fixed time: each waits for what it expects.
"""

import ast
import json
import math
import re
import shlex
import shutil
import subprocess
import sys

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from abstain.models.bundles.rollout_evidence import ServerEvidence, StoredEvidence, status_of
from abstain.models.bundles.rollouts import Rollout
from abstain.models.bundles.store import set_label
from abstain.models.decisions.comparison import PAIRED, weigh
from abstain.service.rollouts.state import state_of
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
HOSTILE_BODY = {"inputs": [[None, True, 1e21, "it's $HOME `id` \\ \" é"]], "model": "a'b:1"}
STRANGE_CITY = "<img src=x onerror=alert(1)>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
expect = playwright.expect


# ---- a server and a browser ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server with the demo's digits, a table with categories, and a regression."""
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
    """A classifier of a table with a number and a category; the name of one city is markup."""
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
    """Opens the console; at the test's end it must have no errors and no requests to other hosts."""
    contexts, errors, foreign = [], [], []

    def note(request):
        if not request.url.startswith((f"{site}/", "data:")):
            foreign.append(request.url)

    def open_console(view="try/digits:1", before=None, refused=False, **context):
        contexts.append(chromium.new_context(**context))
        page = contexts[-1].new_page()

        def note_message(message):
            # The browser itself logs a refused request.
            if message.type in {"error", "warning"} and not (refused and "status of 400" in message.text):
                errors.append(message.text)

        page.on("console", note_message)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", note)
        if before:
            before(page)
        page.goto(f"{site}/#{view}")
        expect(page.locator("nav a[aria-current]")).to_have_attribute("data-view", view.split("/")[0])
        return page

    yield open_console
    for context in contexts:
        context.close()
    assert (errors, foreign) == ([], [])


def arc(x, y, rx, ry, start, stop):
    """Points on an arc of an ellipse, in degrees: 0 is right, 90 is down."""
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
    """Draws with the mouse, stroke by stroke; returns the prediction after the last stroke."""
    box = page.locator("#pad").bounding_box()
    for index, stroke in enumerate(STROKES[name]):
        points = [
            (box["x"] + (scale * x + shift) * box["width"], box["y"] + (scale * y + shift) * box["height"])
            for x, y in stroke
        ]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        if index < len(STROKES[name]) - 1:
            with page.expect_response("**/predict"):
                page.mouse.up()
    with page.expect_response("**/predict") as answer:
        page.mouse.up()
    return answer.value.json()["predictions"][0]


# ---- try it ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0", "3"])
def test_a_digit_drawn_with_the_mouse_is_accepted_and_named(opened, name):
    """The verdict names the digit, and the details are those of the response."""
    page = opened()
    answer = draw(page, name)
    assert (answer["label"], answer["reject"]) == (name, False)
    expect(page.locator("#verdict .word")).to_have_text(f"accepted: {name}")
    expect(page.locator("#verdict")).to_contain_text("mutual information")
    rows = page.locator("#probabilities tbody tr")
    expect(rows).to_have_count(10)
    for index, (mean, std) in enumerate(zip(answer["probabilities"], answer["std"], strict=True)):
        expect(rows.nth(index)).to_have_text(f"{index}{mean:.2f}± {std:.2f}")
    texts = [page.locator("#split dd").nth(index).inner_text().split()[0] for index in range(3)]
    expected = [answer["mutual_information"], answer["aleatoric_entropy"], answer["entropy"]]
    np.testing.assert_allclose([float(text.replace("−", "-")) for text in texts], expected, atol=5e-3)


def test_the_letter_b_drawn_with_the_mouse_is_rejected(opened):
    """I don't know, with the reason in words; the decision score is first, above its threshold."""
    page = opened()
    answer = draw(page, "B")
    assert answer["reject"] is True
    expect(page.locator("#verdict .word")).to_have_text("I don’t know")
    score = answer["scores"]["mutual_information"]
    share = "all" if score["extrapolated"] else f"{score['percentile']:.1f} %"
    none_fits = "No class fits at a coverage of 90 %. " * (answer["prediction_set"] == [])
    expect(page.locator("#verdict .why")).to_have_text(
        f"By mutual information it is stranger than {share} of the calibration rows, above the limit of 99 %. "
        f"{none_fits}The most probable class is {answer['label']}."
    )
    first = page.locator("#scores .strip").first
    expect(first).to_be_hidden()
    page.locator("#scores summary").click()
    expect(first).to_have_attribute("data-score", "mutual_information")
    expect(first).to_contain_text("above its threshold")
    sizes = page.locator("#scores .strip .plot").evaluate_all("all => all.map(plot => plot.clientHeight)")
    assert sizes[0] > 2 * max(sizes[1:])


def test_a_small_drawing_in_a_corner_is_the_same_digit(opened):
    """The position and size of the drawing do not matter: the image is fitted as the training images were."""
    page = opened()
    large = draw(page, "3")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#verdict .word")).to_have_text("No prediction yet")
    small = draw(page, "3", scale=0.5, shift=0.05)
    assert small["label"] == "3"
    assert small["reject"] is False
    np.testing.assert_allclose(small["probabilities"], large["probabilities"], atol=0.2)


def test_another_percentile_changes_the_verdict(opened):
    """A percentile that needs more calibration rows shows the server's error until it is corrected."""
    page = opened(refused=True)
    draw(page, "B")
    page.get_by_label("above the percentile").fill("99.99")
    page.get_by_label("above the percentile").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("needs a larger calibration part")
    page.get_by_label("above the percentile").fill("50")
    page.get_by_label("above the percentile").press("Enter")
    expect(page.locator("#verdict .why")).to_contain_text("above the limit of 50 %")
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_row_of_features_is_edited(opened):
    """Numbers, and categories by name; the columns out of range come first."""
    page = opened("try/table:1")
    word = page.locator("#verdict .word")
    expect(word).to_contain_text("accepted")
    with page.expect_request("**/predict") as sent:
        page.get_by_label("city", exact=True).select_option("Zug")
    *order, another, empty = page.get_by_label("city", exact=True).locator("option").all_inner_texts()
    assert (another, empty) == ("another value…", "empty")
    assert set(order) == {"Bern", "Zug", STRANGE_CITY}
    assert json.loads(sent.value.post_data)["records"][0]["city"] == "Zug"
    with page.expect_request("**/predict") as sent:
        page.get_by_label("age", exact=True).fill("900")
    assert json.loads(sent.value.post_data)["records"] == [{"age": 900, "city": "Zug"}]
    expect(word).to_have_text("I don’t know")
    expect(page.locator("#verdict .columns-of-row li")).to_have_text(re.compile(r"^age 900; trained on \d+ – \d+$"))
    page.get_by_label("age", exact=True).fill("1070000")
    expect(page.locator("#verdict .columns-of-row li")).to_contain_text("age 1,070,000; trained on")


def test_a_gap_is_kept_and_named(opened):
    """In a field, in the choice of a category and in a pasted row; the model's replacement is said."""
    page = opened("try/table:1")
    expect(page.locator("#verdict .word")).to_contain_text("accepted")  # the first request is over
    told = page.locator("#verdict .columns-of-row li")
    with page.expect_request("**/predict") as sent:
        page.get_by_label("age", exact=True).fill("")
    assert json.loads(sent.value.post_data)["records"][0]["age"] is None
    expect(told).to_have_text(re.compile(r"^age is empty; the model uses [\d.]+, the median$"))
    with page.expect_request("**/predict") as sent:
        page.get_by_label("city", exact=True).select_option("empty")
    expect(told).to_have_count(2)
    assert json.loads(sent.value.post_data)["records"] == [{"age": None, "city": None}]
    expect(told.nth(1)).to_have_text(re.compile("^city is empty; the model uses .+, the most frequent category$"))
    page.get_by_text("Paste a row").click()
    row = page.get_by_label("2 values")
    row.fill("30, Bern")
    expect(told).to_have_count(0)
    expect(page.get_by_label("age", exact=True)).to_have_value("30")
    for text in (",Zug", "NA;Zug", "\tZug", '"","Zug"'):
        row.fill(text)
        expect(page.get_by_label("age", exact=True)).to_have_value("")
        expect(page.get_by_label("city", exact=True)).to_have_value(re.compile(r"\d"))
        expect(told).to_contain_text("age is empty")
        row.fill("30 Bern")
        expect(page.get_by_label("age", exact=True)).to_have_value("30")
    row.fill("30,")
    expect(page.get_by_label("city", exact=True)).to_have_value("")
    row.fill("30, Bern, 3")
    hint = "paste the header above the row if the row has other columns, too"
    expect(page.get_by_role("alert")).to_have_text(f"expected 2 values, found 3; {hint}")
    row.fill("thirty, Bern")
    expect(page.get_by_role("alert")).to_have_text("age: expected a number, found thirty")


def test_a_pasted_text_that_is_no_row_shows_no_verdict(opened):
    """Neither the last one's; a change of the form, or an empty box, is the form's row again."""
    page = opened("try/table:1")
    word, alert = page.locator("#verdict .word"), page.get_by_role("alert")
    page.get_by_text("Paste a row").click()
    row = page.get_by_label("2 values")
    row.fill("30, Bern")
    expect(word).to_contain_text("accepted")
    row.fill("30, Bern, 3")
    expect(word).to_have_text("No prediction yet")
    expect(page.locator("#verdict .why")).to_contain_text("The pasted row cannot be read: expected 2 values, found 3")
    expect(page.locator("#details")).not_to_contain_text("high")
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#copied")).to_contain_text("The pasted row cannot be read")
    page.get_by_label("age", exact=True).fill("31")
    expect(word).to_contain_text("accepted")
    expect(alert).to_be_hidden()
    row.fill("x")
    expect(word).to_have_text("No prediction yet")
    row.fill("")
    expect(word).to_contain_text("accepted")
    expect(alert).to_be_hidden()


def test_a_line_of_a_file_is_pasted_with_its_header(opened):
    """The columns are found by name, in any order; others and the target are left out, and said."""
    page = opened("try/table:1")
    word, alert, note = page.locator("#verdict .word"), page.get_by_role("alert"), page.locator("#pasted-note")
    expect(word).to_contain_text("accepted")
    page.get_by_text("Paste a row").click()
    row = page.get_by_label("2 values")
    with page.expect_request("**/predict") as sent:
        row.fill('id,city,risk,age\n7,"Zug",high,33\n')
    assert json.loads(sent.value.post_data)["records"] == [{"age": 33, "city": "Zug"}]
    expect(note).to_have_text("left out: id, risk (what the model predicts)")
    expect(page.get_by_label("age", exact=True)).to_have_value("33")
    row.fill("city;age\nBern;41\nZug;42")
    expect(page.get_by_label("age", exact=True)).to_have_value("41")
    expect(note).to_have_text("the first of 2 rows")
    row.fill("30\nBern")
    expect(page.get_by_label("age", exact=True)).to_have_value("30")
    expect(note).to_have_text("")
    for text, error in {
        "id,age\n7,33": "columns are missing in the header: city",
        "id,age,city\n7,33": "expected 3 values as in the header, found 2",
        "age,city,age\n1,Zug,2": "expected one column age, found two",
        "age,city\nold,Zug": "age: expected a number, found old",
    }.items():
        row.fill(text)
        expect(alert).to_have_text(error)
        expect(word).to_have_text("No prediction yet")


def test_a_pasted_category_has_the_text_of_the_model(opened):
    """As the server reads it: True and FALSE of other programs, 2.0 of a column with gaps; a category of that text comes first."""
    found = opened("try/table:1").evaluate(
        """async () => {
          const { rowOf } = await import("/console/pasted.js");
          const of = (name, categories) => ({ name, kind: "category", categories });
          const features = [of("a", ["false", "true"]), of("b", ["1", "2"]), of("c", ["True", "x"])];
          return ["a,b,c\\nFALSE,2.0,True", "True;1;y"].map((text) => rowOf(text, { features, target_name: "t" }).values);
        }"""
    )
    assert found == [["false", "2", "True"], ["true", "1", "y"]]


def test_another_category_is_rejected(opened):
    """One that was not in training, as the response says."""
    page = opened("try/table:1")
    page.get_by_label("city", exact=True).select_option("another value…")
    page.get_by_label("Another value of city").fill("Atlantis")
    expect(page.locator("#verdict .word")).to_have_text("I don’t know")
    expect(page.locator("#verdict")).to_contain_text("city: 'Atlantis' was not in training")
    page.get_by_text("Paste a row").click()
    page.get_by_label("2 values").fill("30, Bern")
    expect(page.locator("#verdict .word")).to_contain_text("accepted")


def test_a_value_that_cannot_be_sent_is_named(opened):
    """An empty field of a model that was not fitted on a table."""
    page = opened("try/table:1")
    page.get_by_label("Model and version").select_option("wave:1")
    page.get_by_label("feature 0").fill("")
    expect(page.locator("#verdict .why")).to_have_text(
        "feature 0 is empty: expected a number, because this model takes no gaps"
    )
    expect(page.get_by_label("feature 0")).to_have_attribute("aria-invalid", "true")


def test_the_request_is_copied(opened, site):
    """For a terminal and for Python: both get the prediction on the page."""
    page = opened("try/table:1", permissions=["clipboard-read", "clipboard-write"])
    expect(page.locator("#verdict .word")).to_contain_text("accepted")  # the first request is over
    with page.expect_response("**/predict") as shown:
        page.get_by_label("age", exact=True).fill("33")
    expected = shown.value.json()["predictions"][0]["probabilities"]
    expect(page.locator("#copied")).to_be_empty()
    for name, run in (("curl", run_curl), ("Python", run_python)):
        page.get_by_role("button", name=f"Copy as {name}").click()
        expect(page.locator("#copied")).to_have_text("Copied.")
        code = page.evaluate("navigator.clipboard.readText()")
        assert f"{site}/predict" in code
        assert run(code)["probabilities"] == expected, name


def run_curl(code):
    """The prediction that the copied command prints; its words are those of a POSIX shell."""
    program, silent, address, header, kind, data, body = shlex.split(code)
    assert (program, silent, header, data) == ("curl", "-s", "-H", "-d")
    name, value = kind.split(": ")
    answer = httpx.post(address, content=body, headers={name: value}, timeout=PATIENCE)
    return answer.json()["predictions"][0]


def run_python(code):
    """The prediction that the copied program prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    return ast.literal_eval(run.stdout)


def test_copied_requests_quote_what_a_shell_or_python_would_read(opened):
    """Quotes and words of JSON in names; the key is named, never copied."""
    page = opened()
    made = page.evaluate(
        """async ([address, body]) => {
          const { asCurl, asPython } = await import("/console/requests.js");
          return [asCurl(address, body, true), asPython(address, body, true)];
        }""",
        ["http://here/predict", HOSTILE_BODY],
    )
    words = shlex.split(made[0])
    assert json.loads(words[-1]) == HOSTILE_BODY
    assert "X-API-Key: $KEY" in words
    assert 'headers={"X-API-Key": os.environ["KEY"]}' in made[1]
    call = ast.parse(made[1]).body[2].value
    sent = {keyword.arg: keyword.value for keyword in call.keywords}["json"]
    assert ast.literal_eval(sent) == HOSTILE_BODY


def test_a_regression_shows_its_interval(opened, site):
    """Mean, interval and quantiles of the response."""
    page = opened("try/wave:1")
    expect(page.locator("#verdict .word")).to_contain_text("accepted")
    with page.expect_response("**/predict") as response:
        page.get_by_label("feature 0").fill("0.5")
    answer = response.value.json()["predictions"][0]
    expect(page.locator("#interval div").filter(has_text="mean")).to_contain_text(shown(answer["mean"]))
    lower, upper = map(shown, answer["interval"])
    expect(page.locator("#interval div").filter(has_text="interval, 90")).to_contain_text(f"{lower} to {upper}")
    ticks = page.locator(".number-line .tick")
    values = [float(text.replace("−", "-")) for text in ticks.all_inner_texts()]
    middles = ticks.evaluate_all("all => all.map(({ style }) => parseFloat(style.left))")
    assert 3 <= len(values) <= 7
    assert np.ptp(np.diff(values)) < 1e-9
    # The marks of the axis are where its bars are: by the mean, and by the ends of the interval.
    scale, offset = np.polyfit(middles, values, 1)
    assert scale * position(page, ".mark", "left") + offset == pytest.approx(answer["mean"], abs=1e-6)
    left, width = position(page, ".span.interval", "left"), position(page, ".span.interval", "width")
    assert [scale * left + offset, scale * (left + width) + offset] == pytest.approx(answer["interval"], abs=1e-6)
    expect(page.locator(".axis")).to_have_text("y, in the units of the training data")
    page.get_by_role("button", name="Far outside the training rows").click()
    expect(page.locator("#verdict .word")).to_have_text("I don’t know")


def shown(value):
    """A number with four digits."""
    return f"{float(f'{value:.4g}'):g}".replace("-", "−")


def position(page, selector, side):
    """A side of an element of the axis, in percent."""
    return page.locator(f".number-line {selector}").evaluate(f"element => parseFloat(element.style.{side})")


ROWS = "the calibration rows"


@pytest.mark.parametrize(
    ("view", "percentile", "classes", "changes", "text"),
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
         f"By its combined score it is stranger than 98.6 % of {ROWS}, close to the limit of 99 %."),
        ("wave", 98.6, None, {},
         f"By the standard deviation over the draws it is stranger than 98.6 % of {ROWS}, close to the limit of 99 %."),
    ],
)  # fmt: skip
def test_an_accepted_row_shows_how_close_it_is_to_the_limit(opened, view, percentile, classes, changes, text):
    """By one score, per class, by several scores, and for a regression; a strange row is never called familiar."""
    labels = []

    def respond(route):
        content = route.fetch().json()
        row = content["predictions"][0]
        scores = row["scores"]
        decision = next(scores[name] for name in ("combined", "mutual_information", "std") if name in scores)
        decision |= {"percentile": percentile, "p_value": 1 - percentile / 100, "extrapolated": False}
        row |= {"reject": False, "reasons": []} | ({} if classes is None else {"prediction_set": classes})
        labels.append(row.get("label"))
        route.fulfill(json=content)

    def describe(route):
        route.fulfill(json=route.fetch().json() | changes)

    def mock(page):
        page.route("**/predict", respond)
        page.route("**/console/models/*/versions/1", describe)

    page = opened(f"try/{view}:1", before=mock)
    if view == "digits":
        draw(page, "3")
    expect(page.locator("#verdict .word")).to_contain_text("accepted")
    expect(page.locator("#verdict .why")).to_have_text(text.replace("LABEL", str(labels[-1])))
    expect(page.locator("#verdict.doubtful")).to_have_count(int("close to" in text))


@pytest.mark.parametrize(
    ("changes", "percentile", "texts"),
    [
        ({"novel": True, "ambiguous": False, "reasons": ["novel: knn above its 99th percentile", "novel: range above its 99th percentile: a: b"]}, 99,
         ["Novelty: stranger than all of ROWS, above the limit of 99.3 %.",
          "Ambiguity: by 1 − the largest probability, 0.25, less sure than 99.6 % of ROWS, close to the limit of 99.7 %.",
          "Above their 99th percentile: knn, range (a: b)."]),
        ({"novel": False, "ambiguous": True, "reasons": ["ambiguous: max_probability (1 − the largest probability) above its limit of 0.2"]}, 99,
         ["Novelty: stranger than all of ROWS, within the limit of 99.3 %.",
          "Ambiguity: by 1 − the largest probability, 0.25, less sure than 99.6 % of ROWS, above the limit of 99.7 %."]),
        ({"novel": True, "ambiguous": False, "reasons": ["novel: novelty above its limit of 3.2, loudest knn: 98.75 of 100"]}, 98,
         ["Novelty: stranger than all of ROWS, above its limit.",
          "Ambiguity: by 1 − the largest probability, 0.25, less sure than 99.6 % of ROWS, within its limit.",
          "What adds most is knn: above 98.75 % of the calibration rows."]),
    ],
)  # fmt: skip
def test_a_decision_of_two_parts_says_both(opened, changes, percentile, texts):
    """How strange and how unsure the row is, each with its own limit, which is known at the version's own percentile."""
    entry = {"value": 0.25, "percentile": 99.6, "threshold": 0.2, "p_value": 0.004, "extrapolated": False}

    def respond(route):
        content = route.fetch().json()
        row = content["predictions"][0]
        row["scores"] |= {
            "novelty": entry | {"percentile": 99.9, "p_value": 0.5, "extrapolated": True},
            "max_probability": entry,
        }
        row |= {"reject": True, "prediction_set": ["low"]} | changes
        route.fulfill(json=content | {"percentile": percentile})

    def describe(route):
        parts = {
            "ambiguity": "max_probability",
            "novelty": "novelty",
            "part_rates": {"novel": 0.007, "ambiguous": 0.003},
        }
        route.fulfill(json=route.fetch().json() | parts)

    def mock(page):
        page.route("**/predict", respond)
        page.route("**/console/models/*/versions/1", describe)

    page = opened("try/table:1", before=mock)
    expect(page.locator("#verdict .word")).to_have_text("I don’t know")
    told = " ".join(texts).replace("ROWS", ROWS)
    expect(page.locator("#verdict .why")).to_contain_text(f"{told} The most probable class is")


def test_a_version_with_shortfalls_has_a_banner_in_both_views(opened):
    """With a link to the shortfalls; a sound version has no banner. The chains of `wave` are much too short."""
    page = opened("try/wave:1")
    banner = page.locator("#unsound")
    expect(banner).to_contain_text("Failed publication checks")
    banner.get_by_role("link", name="Show shortfalls").click()
    expect(page.locator("#description .shortfall")).to_contain_text("Failed publication checks")
    expect(page.locator("#versions tr").filter(has_text="wave:1")).to_contain_text("has shortfalls")
    page.get_by_label("Model and version").select_option("digits:1")
    expect(page.locator("#description .shortfall")).to_have_count(0)
    page.get_by_role("link", name="Try it").click()
    expect(banner).to_be_hidden()


def test_text_of_the_server_is_only_text(opened):
    """A category with the name of an element stays text."""
    page = opened("try/table:1")
    expect(page.get_by_label("city", exact=True).locator("option", has_text=STRANGE_CITY)).to_have_count(1)
    assert page.locator("img").count() == 0


# ---- from strokes to pixels ----------------------------------------------------------------------------------


def pixels(page, strokes, rows, high):
    """The image that `drawing.js` makes of strokes, as an array; None if it makes none."""
    made = page.evaluate(
        "async ([strokes, format]) => (await import('/console/drawing.js')).image(strokes, format)",
        [strokes, {"rows": rows, "columns": rows, "low": 0, "high": high}],
    )
    return None if made is None else np.reshape(made, (rows, rows))


def test_images_are_made_as_those_of_mnist(opened):
    """In a box of 20×20, centred by mass in 28×28, for any position and size of the drawing."""
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
    """Counts of 4×4 dots from 0 to 16, over the whole height, with the ink of the training images."""
    page = opened()
    for name, strokes in STROKES.items():
        image = pixels(page, strokes, 8, 16)
        assert set(np.unique(image)) <= set(range(17))
        assert (image.sum(axis=1) > 0).all(), name
        assert 290 <= image.sum() <= 355, name


def test_no_strokes_make_no_image(opened):
    """A dot makes an image with ink in its middle."""
    page = opened()
    assert pixels(page, [], 28, 255) is None
    assert pixels(page, [[(0.1, 0.9)]], 28, 255)[13:15, 13:15].min() == 255
    assert np.isfinite(pixels(page, [[(0.1, 0.5), (0.9, 0.5)]], 8, 16)).all()


# ---- watch it --------------------------------------------------------------------------------------------------------


def test_the_watch_view_shows_the_requests_just_made(opened, site):
    """Rows and rejections since the start of the server and since the page was opened; then drift."""
    page = opened("watch/digits:1")
    expect(page.locator("#pulse")).to_contain_text("read at")
    rows = np.random.default_rng(3).integers(0, 17, (40, 64)).tolist()
    for _ in range(3):
        predicted = httpx.post(f"{site}/predict", json={"inputs": rows, "model": "digits"}, timeout=PATIENCE).json()[
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

    assert any(row["reject"] for row in predicted)
    expect(page.locator("#rows")).to_have_text(f"{counted('abstain_rows'):.0f}")
    share = counted("abstain_rejected") / counted("abstain_rows")
    expect(page.locator("#reject-rate")).to_have_text(f"{100 * share:.1f} %")
    expect(page.locator("#median")).to_contain_text("ms")
    expect(page.locator("#spread tbody tr")).to_have_count(12)
    expect(page.locator("#drift tbody tr").first).to_be_visible(timeout=1_000 * PATIENCE)
    page.get_by_label("since this page was opened").check()
    expect(page.locator("#rows")).to_have_text("120")
    expect(page.locator("#too-few")).to_have_text("too few rows to judge: 120 of 300")
    expect(page.locator("#spread")).to_contain_text("Too few rows to judge: 120 of 300.")
    assert page.locator(".u-wrap canvas").count() >= 3


def test_drift_is_shown_if_it_is_measured(opened):
    """The log martingale, the other two statistics, and the time of the alarm, from the metrics."""
    samples = """
abstain_drift_alarm_level 4.6
abstain_drift_log_martingale{model="digits",version="1",score="entropy"} 7.25
abstain_drift_log_martingale{model="digits",version="1",score="std"} -0.5
abstain_drift_log_martingale{model="other",version="1",score="std"} 99
abstain_drift_crossed_timestamp_seconds{model="digits",version="1",score="entropy"} 1.7e9
abstain_drift_psi{model="digits",version="1",score="entropy"} 0.31
abstain_drift_ks{model="digits",version="1",score="entropy"} 0.22
"""

    def measured(page):
        def respond(route):
            response = route.fetch()
            lines = [line for line in response.text().splitlines() if "abstain_drift_" not in line]
            route.fulfill(response=response, body="\n".join(lines) + samples)

        page.route("**/metrics", respond)

    page = opened("watch/digits:1", before=measured)
    rows = page.locator("#drift tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("entropy7.250.3100.220since")
    expect(rows.nth(1)).to_contain_text("std−0.500––none")
    expect(page.locator("#drift")).to_contain_text("– means too few rows: PSI and KS need 300")
    expect(page.locator("#drift")).to_contain_text("Alarm at 4.60.")
    expect(page.locator("#chart-drift canvas")).to_have_count(1)


def test_a_pause_stops_the_reading(opened):
    """While the view is paused, it requests no metrics; afterwards it does again."""
    urls = []

    def counting(page):
        page.clock.install()
        page.on("request", lambda request: urls.append(request.url) if request.url.endswith("/metrics") else None)

    page = opened("watch/digits:1", before=counting)
    expect(page.locator("#pulse")).to_contain_text("read at")
    button = page.get_by_role("button", name="Pause")
    button.click()
    expect(page.locator("#pulse")).to_have_text("paused")
    expect(page.get_by_role("button", name="Resume")).to_have_attribute("aria-pressed", "true")
    before = len(urls)
    page.clock.run_for(60_000)
    assert len(urls) == before
    with page.expect_request("**/metrics"):
        page.get_by_role("button", name="Resume").click()


def test_metrics_are_read_as_prometheus_reads_them(opened, site):
    """Every sample of a real exposition, escaped labels, and quantiles of a histogram by linear interpolation."""
    page = opened()
    httpx.post(f"{site}/predict", json={"inputs": [[0.0] * 64], "model": "digits"}, timeout=PATIENCE)
    text = httpx.get(f"{site}/metrics", timeout=PATIENCE).text + 'odd{name="a\\"b\\\\c\\nd"} 1.5e3\nbeyond +Inf\n'
    load = "async ([text, ...more]) => { const read = await import('/console/exposition.js'); "
    parsed = page.evaluate(
        load
        + "return [...read.parse(text)].map(([name, found]) => [name, found.map(s => [s.labels, String(s.value)])]); }",
        [text],
    )
    found = {(name, frozenset(labels.items())): float(value) for name, samples in parsed for labels, value in samples}
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


def test_the_model_view_shows_the_facts_of_the_store(opened, site):
    """Method, data, metrics, classes, a dot for every bin of reliability, every version with its labels and its report."""
    page = opened("model/digits:1")
    facts = httpx.get(f"{site}/console/models/digits/versions/1", timeout=PATIENCE).json()
    description = page.locator("#description")
    expect(description).to_contain_text(f"{facts['method']['kind']}, {facts['draws']} draws")
    expect(description).to_contain_text(facts["digest"])
    expect(description).to_contain_text(f"{facts['metrics']['accuracy']:.3f}")
    expect(description).to_contain_text(f"baselineaccuracy{facts['metrics']['accuracy']:.3f}")
    bounds = " and ".join(f"{100 * end:.1f} %" for end in facts["coverage_bounds"])
    expect(description).to_contain_text(f"coverage asked for90.0 %; for 95 % of calibrations between {bounds}")
    rows = page.locator("#classes tbody tr")
    expect(rows).to_have_count(10)
    own = facts["classes"][3]
    share = [f"{100 * own[name]:.1f} %" for name in ("accuracy", "precision")]
    expect(rows.nth(3)).to_have_text("".join(["3", str(own["rows"]), str(own["predicted"]), *share]))
    expect(page.locator(".reliability circle")).to_have_count(len(facts["reliability"]))
    expect(page.locator("#versions tbody tr")).to_have_count(3)
    expect(page.locator("#versions tbody tr").filter(has_text="digits:1")).to_contain_text("stable")
    page.get_by_role("link", name="The full report").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("digits:1")


def test_the_model_view_shows_a_rollout(opened, site):
    """What is known of the candidate, with the evidence as meters; here with the responses of a server that has one."""
    rollout = Rollout(
        id="0" * 32,
        key="0" * 32,
        candidate=2,
        baseline=1,
        mode="shadow",
        share=1.0,
        margin=0.05,
        alpha=0.05,
        auto=True,
        started="2026-01-01T00:00:00+00:00",
    )
    observed = ServerEvidence(
        rejects=StoredEvidence.of(weigh(np.zeros(30), 0.05, PAIRED)), rows=30, dropped=2, updated=""
    )
    state = state_of(status_of(rollout, [observed]))
    models = httpx.get(f"{site}/models", timeout=PATIENCE).json()
    models["models"][0]["rollout"] = rollout.model_dump()

    def respond(page):
        page.route("**/models", lambda route: route.fulfill(json=models))
        page.route("**/models/digits/rollout", lambda route: route.fulfill(json=state.model_dump()))

    section = opened("model/digits:1", before=respond).locator("#rollout")
    expect(section).to_contain_text("Rollout of digits:2")
    expect(section).to_contain_text(
        "A shadow of digits:1, 100.0 % of the callers; the server ends it when there is a verdict."
    )
    expect(section).to_contain_text("30 callers, 30 rows")
    expect(section).to_contain_text("2 requests, because the server was busy")
    expect(section).to_contain_text(f"none yet; about {state.missing:,} more callers")
    expect(section.get_by_role("meter")).to_have_count(2)


@pytest.mark.parametrize(
    ("view", "text", "shown"),
    [
        ("try/digits:99", "digits:99 is not in the store. This page shows digits:1.", "digits:1"),
        ("model/wave:7", "wave:7 is not in the store. This page shows wave:1.", "wave:1"),
        ("watch/nope:1", "nope:1 is not in the store. This page shows digits:1.", "digits:1"),
        ("model/%E0%A4%A", "%E0%A4%A is not in the store. This page shows digits:1.", "digits:1"),
    ],
)
def test_a_link_to_a_missing_version_says_so(opened, view, text, shown):
    """And shows another version of the model, or the stable one; choosing a version removes the message."""
    page = opened(view)
    expect(page.locator("#notice")).to_have_text(text)
    expect(page.get_by_label("Model and version")).to_have_value(shown)
    expect(page.locator(f"#{view.split('/')[0]} h1")).to_be_visible()
    page.get_by_label("Model and version").select_option("table:1")
    expect(page.locator("#notice")).to_be_hidden()


def test_the_address_keeps_the_chosen_version(opened, site):
    """The same address opens the same view of the version again."""
    page = opened()
    page.get_by_label("Model and version").select_option("wave:1")
    expect(page.get_by_label("feature 0")).to_be_visible()
    page.get_by_role("link", name="Model", exact=True).click()
    expect(page.get_by_role("heading", level=2, name="wave:1")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", level=2, name="wave:1")).to_be_visible()
    expect(page).to_have_title(re.compile(r"Model · wave:1"))


# ---- accessibility ----------------------------------------------------------------------------------------------------


def test_the_keyboard_is_enough(opened):
    """Examples with Tab and Enter, pixels with arrows and space; the focus is visible."""
    page = opened()
    focused = page.locator(":focus")

    def tab_to(locator):
        for _ in range(40):
            page.keyboard.press("Tab")
            if locator.evaluate("element => element === document.activeElement"):
                assert focused.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
                return
        pytest.fail("the element cannot be reached with Tab")

    page.keyboard.press("Tab")
    expect(focused).to_have_text("Skip to content")
    tab_to(page.locator("#pixels"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#pixel-value")).to_have_text("row 2, column 2: 0 of 16")
    with page.expect_request("**/predict") as sent:
        page.keyboard.press("Space")
    row = json.loads(sent.value.post_data)["inputs"][0]
    assert [index for index, value in enumerate(row) if value] == [9]
    expect(page.locator("#pixel-value")).to_have_text("row 2, column 2: 16 of 16")
    tab_to(page.get_by_role("button", name="Example: the letter B"))
    page.keyboard.press("Enter")
    expect(page.locator("#verdict .word")).to_have_text("I don’t know")
    page.keyboard.press("Shift+Tab")
    for _ in range(4):
        page.keyboard.press("Shift+Tab")
    tab_to(page.get_by_role("button", name="Example: the digit 3"))
    page.keyboard.press("Space")
    expect(page.locator("#verdict .word")).to_have_text("accepted: 3")


def test_a_screen_reader_can_use_the_page(opened):
    """Landmarks, one heading per view, a name for every control, a verdict that is read aloud."""
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
            name = control.evaluate(NAME_OF)
            assert name.strip(), control.evaluate("e => e.outerHTML")


@pytest.mark.parametrize("model", ["digits:1", "table:1", "wave:1"])
def test_a_phone_does_not_scroll_sideways(opened, model):
    """At 360 pixels, in every view, with a prediction."""
    page = opened(f"try/{model}", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    if model == "digits:1":
        page.get_by_role("button", name="Example: the letter B").tap()
        expect(page.locator("#verdict .word")).to_have_text("I don’t know")
        page.locator("#scores summary").tap()
        expect(page.locator(".multiples .strip").first).to_be_visible()
    else:
        expect(page.locator("#details h2").first).to_be_visible()
    for view in ("Try it", "Watch it", "Model"):
        page.get_by_role("link", name=view, exact=True).tap()
        expect(page.get_by_role("heading", level=1)).to_have_text(view)
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_verdict_is_in_view_on_a_phone(opened):
    """While a row is edited, at the top of the form and at its end."""
    page = opened("try/table:1", viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True)
    for value, word in (("30", "accepted"), ("9000", "I don’t know")):
        field = page.get_by_label("age", exact=True)
        field.tap()
        field.fill(value)
        expect(page.locator("#pinned")).to_contain_text(word)
        expect(page.locator("#pinned")).to_be_in_viewport(ratio=1)
        expect(page.locator("#verdict .word")).to_contain_text(word)
    page.get_by_label("city", exact=True).select_option("another value…")
    page.get_by_label("Another value of city").fill("Atlantis")
    expect(page.locator("#pinned")).to_contain_text("I don’t know")
    page.evaluate("document.getElementById('percentile').scrollIntoView({ block: 'start' })")
    expect(page.locator("#pinned")).to_be_in_viewport(ratio=1)


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


def test_the_theme_is_that_of_the_system_until_another_is_chosen(opened):
    """The contrast is at least 4.5 to 1 in both themes (WCAG 2 AA), and a choice is stored."""
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


def test_nothing_is_animated(opened):
    """There are no animations and no transitions."""
    page = opened("watch/digits:1", reduced_motion="reduce")
    expect(page.locator("#pulse")).to_contain_text("read at")
    assert page.evaluate("document.getAnimations().length") == 0


def test_the_page_waits_until_a_version_is_ready(opened):
    """The store first has no ready version, then one."""
    waiting = []

    def loading(page):
        def respond(route):
            if waiting:
                route.continue_()
                return
            waiting.append(True)
            versions = [{"version": 1, "labels": [], "digest": None, "method": None, "state": "loading", "why": None}]
            route.fulfill(json={"models": [{"name": "digits", "versions": versions}]})

        page.route("**/models", respond)

    page = opened(before=loading)
    expect(page.locator("#notice")).to_be_hidden()
    assert waiting
    expect(page.get_by_label("Model and version")).to_be_enabled()
