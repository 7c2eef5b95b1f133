"""The report as a reader gets it: in a browser, without a network; its tables and sentences."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure

from l2l_jax.report.csv import to_csv
from l2l_jax.report.page import attack_table, page, table
from l2l_jax.report.text import sentences

MODELS = ("original", "unlearned", "retrained")
PICTURES = ("restorations", "losses", "features", "relearning")


def result(name, title, accuracies, depth, resolved=True):
    figures = {
        model: {
            of: {"mse": [0.01, 0.009, 0.011], "accuracy": [value, value - 0.02, value + 0.02]}
            for of in ("retain", "forget")
        }
        for model, value in zip(MODELS, accuracies, strict=True)
    }
    known = {"value": depth, "low": depth - 0.1, "high": depth + 0.1, "resolved": resolved}
    return {
        "name": name, "title": title, "figures": figures, "distance": {"d": 0.3, "p": 0.01},
        "depth_untouched": {} if name == "as_it_lies" else {"accuracy": {**known, "value": depth + 0.1}},
        "depth": {"accuracy": known, "error": {**known, "resolved": True, "value": depth + 0.2}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def report():
    figures = {"psnr": 20.0, "mse": 0.01, "accuracy": 0.9}
    intervals = {name: [value * 0.9, value * 1.1] for name, value in figures.items()}
    tuning = result("retain_tuning", "retain images only, 400 steps", (0.92, 0.80, 0.61), 0.38)
    return {
        **{model: {"retain": figures, "forget": figures} for model in MODELS},
        "intervals": {model: {"retain": intervals, "forget": intervals} for model in MODELS},
        "real_images": {"retain": {"accuracy": 0.98}, "forget": {"accuracy": 0.97}},
        "test_images": {"retain": {"count": 200, "skipped": {}}, "forget": {"count": 201, "skipped": {}}},
        "bad_training_images": {},
        "not_available": {"inception_score": "it needs 10 images, and there are 8"},
        "original_weights": {"origin": "shipped"},
        "audit": {
            "verdict": {
                "finding": "hidden, not forgotten", "weakest_attack": "retain_tuning", "sure": True,
                "title": tuning["title"], "depth": tuning["depth"]["accuracy"],
                "unresolved_titles": ["linear probe"],
            },
            "thresholds": {"deep": 0.8, "shallow": 0.5},
            "yardstick": {
                "origin": "twin", "ratio": [0.99, 0.9, 1.1], "images": "validation", "fair": True,
                "seeds": None,
            },
            "cost": {"mse_ratio": [1.24, 1.2, 1.3], "accuracy_drop": [0.01, 0.0, 0.02]},
            "results": [
                result("as_it_lies", "before any attack", (0.92, 0.38, 0.57), 1.54),
                tuning,
                result("relearning_100", "100 forget images, 50 steps", (0.94, 0.93, 0.92), 0.5, False),
            ],
            "membership": {
                model: {"error": {"auc": [0.52, 0.48, 0.56], "true_positives": 0.01}} for model in MODELS
            },
            "layers": {model: {"blocks_0": [0.9, 0.86, 0.93]} for model in MODELS},
            "curves": {"retain_tuning": {}},
            "shown_attack": "retain_tuning",
        },
        "seed": 0,
        "config": {"family": "mae", "data": {"forget": [5, 6, 7, 8, 9], "retain": [0, 1, 2, 3, 4]}},
        "versions": {"python": "3.11"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "durations_seconds": {"unlearn": 20.0, "audit": 90.0},
        "peak_memory_gib": 1.0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def html(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    drawn = {}
    for name in PICTURES:
        figure = Figure(figsize=(9, 3))
        figure.add_subplot().imshow(np.random.default_rng(0).random((8, 24)))
        drawn[name] = folder / f"{name}.png"
        figure.savefig(drawn[name])
    path = folder / "report.html"
    path.write_text(page(report, drawn, "run"))
    return path


def test_the_sentences_say_what_survives(report):
    assert sentences(report) == [
        "To be forgotten: 5, 6, 7, 8, 9; to be kept: 0, 1, 2, 3, 4.",
        "Hidden, not forgotten: an attack brings it back.",
        "Before any attack, the class of 38 of 100 forget images is read from what it restores (original "
        "model: 92, retrained model: 57); depth 1.54 by accuracy [1.44, 1.64] and 1.74 by log error [1.44, "
        "1.64].",
        "A depth above 1 is more than never having seen: it shows that something was removed.",
        "The attack that leaves the least: retain images only, 400 steps; then the class of 80 of 100 forget "
        "images is read from what it restores (original model: 92, retrained model: 61); depth 0.38 by "
        "accuracy [0.28, 0.48] and 0.58 by log error [0.28, 0.48].",
        "Too few test images to tell a depth: linear probe.",
        "On retain images the hole error is 1.24 times the original's [1.20, 1.30], and the accuracy 0.010 "
        "lower [0.000, 0.020].",
        "The 95 % interval over test images bears the verdict out.",
        "What another seed of the retrained model would change is not known, and is not in any interval.",
    ]


def test_the_first_line_says_when_a_verdict_is_not_sure(report):
    audit = report["audit"]
    doubted = {**report, "audit": {**audit, "verdict": {**audit["verdict"], "sure": False}}}
    assert sentences(doubted)[1] == "Hidden, not forgotten (not sure): an attack brings it back."


def test_the_page_says_which_figures_are_missing_and_why(html):
    missing = "IS: not available: it needs 10 images, and there are 8."
    assert f'<p class="note">{missing}</p>' in html.read_text()


def test_tables_hold_the_figures(report):
    lines = table(report).splitlines()
    assert len(lines) == 2 + 6 and "0.0100" in lines[2] and lines[4].startswith("retain  retrained")
    rows = attack_table(report["audit"], "github").splitlines()
    assert "0.380 0.360 – 0.400" in rows[2] and "1.54 1.44 – 1.64" in rows[2]
    assert rows[-1].count("| —") == 3  # depths that the images cannot tell, or that nobody measured
    assert "| 0.48 0.28 – 0.48" in rows[3]  # against the original as it lies
    csv = to_csv(report).splitlines()
    assert "retain_tuning,unlearned,forget,depth_by_accuracy,0.38,0.28,0.48" in csv
    assert "retain_tuning,unlearned,forget,depth_untouched_by_accuracy,0.48,0.28,0.48" in csv
    assert ",unlearned,retain,psnr,20.0,18.0,22.0" in csv
    assert not [line for line in csv if "relearning_100" in line and "depth_by_accuracy" in line]


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs the Debian packages chromium and chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_shows_it_without_errors_and_without_a_network(browser, html, width):
    browser.set_window_size(width, 900)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(html.as_uri())
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and not [url for url in asked if not url.startswith(("file:", "data:"))]
    sizes = browser.execute_script(
        "return [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert len(sizes) == len(PICTURES) and all(real > 0 and 0 < shown <= width for real, shown in sizes)
    # Nothing makes the page itself scroll sideways; wide tables scroll in their own place.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    verdict, first_table = browser.execute_script(
        "return ['.verdict', 'table'].map(s => document.querySelector(s).getBoundingClientRect().top)"
    )
    assert 0 <= verdict < first_table
    assert not browser.execute_script("return document.querySelector('details').open")


def test_the_page_needs_no_other_file(html):
    text = html.read_text()
    assert text.count("data:image/png;base64,") == len(PICTURES)
    assert pathlib.Path(html).stat().st_size < 5e6 and "http" not in text
