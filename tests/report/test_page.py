"""The report: text and tables, and rendering in a browser without a network."""

import json
import shutil

import pytest

from l2l_jax.report.tables import attack_table, class_table, console, evidence_table, task_table, to_csv
from l2l_jax.report.text import listed, sentences
from l2l_jax.report.write import write_report
from tests.report.example import HIDDEN, drawings, report


def first(example):
    return sentences(example)[0]


NAMES = "sandal, shirt, sneaker, bag and boot"
COST = "Cost: masked MSE on the retained classes +17% (95% CI 13–21%)."


def test_headline_has_verdict_and_cost():
    retrained = "a model retrained without them"
    assert first(report()) == (
        f"Forgotten: after four attacks the model knows no more about {NAMES} than {retrained}. {COST}"
    )
    assert first(report(HIDDEN)) == (
        f"Hidden, not forgotten: without an attack the model knows no more about {NAMES} than {retrained}, "
        f"but one attack recovers knowledge (25 forget images, 50 steps). {COST}"
    )
    several = report(HIDDEN)
    several["audit"]["verdict"]["violated_attacks"] = ["relearning_25", "retain_tuning"]
    assert "two attacks recover knowledge (the strongest: 25 forget images, 50 steps)." in first(several)


def test_headline_reports_a_missed_budget():
    missed = {"met": False, "budget": 1.15, "retain": {"value": 1.4}}
    assert "The retain budget was missed: 1.40 times" in first({**report(), "retain_budget": missed})
    assert "budget" not in first({**report(), "retain_budget": {**missed, "met": True}})


def test_headlines_of_other_verdicts():
    knowledge = {**HIDDEN, "no_attack": ((0.031, 0.031, 0.065), (0.66, 0.66, 0.27))}
    assert first(report(knowledge)).startswith("Not forgotten: without any attack the model knows more")
    close = {**HIDDEN, "relearning_25": ((0.05, 0.0535, 0.058), (0.70, 0.54, 0.54))}
    headline = first(report(close))
    assert (
        headline.startswith("Undecided: after one attack (25 forget images")
        and "test images would decide" in headline
    )
    several = report(close)
    several["audit"]["verdict"]["unsettled_attacks"] = ["relearning_25", "retain_tuning"]
    assert first(several).startswith("Undecided: after two attacks (the least conclusive: 25 forget images")
    nothing = {name: ((0.065, 0.116, 0.065), (0.27, 0.07, 0.27)) for name in HIDDEN}
    assert "There was little to forget" in first(report(nothing))


def test_headline_without_a_retrained_model_or_audit():
    text = sentences(report(HIDDEN, retrained=False))
    assert (
        "After the strongest attack (25 forget images, 50 steps) its calibrated MSE is 1.48 times" in text[0]
    )
    assert "--config.audit.retrained=train" in text[-1]
    assert first(report(audited=False)).startswith("Not audited. A classifier recognizes sandal")


def test_console_starts_with_the_headline_and_shortens_long_lists():
    text = console(report())
    assert text.startswith("Forgotten:") and "rest" not in text
    assert listed(["5"]) == "5" and listed(range(20)).endswith("6, 7 and 12 more classes")


def test_tables_have_the_metrics():
    example = report(HIDDEN)
    rows = attack_table(example["audit"]).text("github").splitlines()
    assert "| more" in rows[-1] and "| no more" in rows[-2] and "0.0460 0.04" in rows[-1]
    assert len(class_table(example).rows) == 5
    assert [row.titles for row in task_table(example).rows] == [
        ("centre 8/16, prompt a bag", split) for split in ("retain", "forget")
    ]
    titles = [row.titles[0] for row in evidence_table(example["audit"]).rows]
    assert "membership by masked MSE: AUC" in titles and "linear probe of norm: accuracy" in titles
    csv = to_csv(example).splitlines()
    assert ",unlearned,retain,psnr,20.0,18.0,22.0" in csv
    assert [line for line in csv if line.startswith("relearning_25,unlearned,forget,excess_by_error,")]
    assert [line for line in csv if line.startswith("no_attack,unlearned,forget,depth_by_error,")]


ODD = ("cost in $, paid in $", "犬と猫", "a" * 200, "caf\udce9", "<b>&amp;")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "report"
    example, bad = report(HIDDEN, names=ODD), {"a.jpg": "it ends too early"}
    example["test_images"]["retain"]["skipped"] = bad
    example["bad_training_images"] = {"unlearn": {"forget": bad}}
    write_report(folder, example, drawings(ODD))
    return folder / "report.html"


@pytest.mark.filterwarnings("error")
def test_special_characters_in_names(html):
    text = html.read_text("utf-8")
    for part in ("paid in $", "犬と猫", "&lt;b&gt;&amp;amp;", "caf\\udce9"):
        assert part in text
    assert "<b>&amp;" not in text
    assert text.index("Hidden, not forgotten") < text.index("<table")
    assert text.count("data:image/png;base64,") == 7 and html.stat().st_size < 5e6 and "http" not in text
    assert "IS: not available: it needs 10 images, and there are 8." in text
    flowing = " ".join(text.split())
    assert "of which 1 could not be decoded" in flowing
    assert "Training images of the forget set that could not be decoded (unlearn): 1, listed" in flowing


def test_rerun_keeps_the_costs_of_the_first_run(html, tmp_path, monkeypatch):
    monkeypatch.setattr("l2l_jax.report.write.draw", lambda *_: {})
    monkeypatch.setattr("l2l_jax.report.write.page", lambda *_: "")
    again = {**report(), "durations_seconds": {"unlearn": 0.1, "evaluate": 3.0}, "peak_memory_gib": 0.5}
    for example in (report(), again):
        kept = write_report(tmp_path, example, drawings())
    assert kept["durations_seconds"] == {"unlearn": 20.0, "audit": 90.0, "evaluate": 3.0}
    assert kept["peak_memory_gib"] == 1.2
    assert write_report(tmp_path, {**again, "seed": 1}, drawings())["peak_memory_gib"] == 0.5


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
def test_browser_renders_without_errors_and_network(browser, html, width):
    browser.set_window_size(width, 900)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(html.as_uri())
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert requests and not [url for url in requests if not url.startswith(("file:", "data:"))]
    sizes = browser.execute_script(
        "return [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert len(sizes) == 7 and all(real > 0 and 0 < displayed <= width for real, displayed in sizes)
    # The page itself does not scroll horizontally; wide tables scroll within their container.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    verdict, examples = browser.execute_script(
        "return ['.verdict', 'img'].map(s => document.querySelector(s).getBoundingClientRect().top)"
    )
    assert 0 <= verdict < examples < (900 if width > 500 else 1300)
    assert not browser.execute_script("return document.querySelector('details').open")
