"""The report: what is on the page, that it needs nothing else, and how it behaves in a browser."""

import base64
import itertools
import json
import re
import shutil
import socket
import struct
import subprocess
import time
import zlib
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
import requests

from samsvae.errors import DataError
from samsvae.study import report, report_tables
from samsvae.study.report import ExperimentEntry, FigureEntry, markup, write_report
from samsvae.version import VERSION

NASTY = "a<b> & \"c\" 'd' $x$ </script><script>alert(1)</script>"


def png(width=6, height=4):
    """A white image."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def score_rows(models, seeds=(0, 1), **columns):
    """Scores of every model, seed and protocol: validation IWELBO, test IWELBO and ATE-Pearson."""
    for i, model in enumerate(models):
        for seed in seeds:
            row = {"run": f"{model}-seed{seed}", "model": model, "method": f"Method {model}", "inference": "MF"}
            row |= {"mask_prior": 0.1, "seed": seed, "dataset": "screen", "split_name": "random", **columns}
            for metric, split, value in (("iwelbo", "val", -10), ("iwelbo", "test", -11), ("ate_pearson", "all", 0.5)):
                row |= {"protocol": "published", "metric": metric, "split": split}
                yield {**row, "value": value + 0.1 * i + 0.01 * seed}
            yield {**row, "protocol": "held-out", "metric": "ate_pearson", "split": "test", "value": 0.25}


def figure(folder, experiment, name, title="A title", caption="A caption.", facts=None):
    folder = folder / "figures" / experiment
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(png())
    (folder / f"{name}.pdf").write_bytes(b"%PDF-1.4")
    (folder / f"{name}.facts.tsv").write_text(facts or "item\tvalue\ncells\t1,420\n")
    paths = [folder / f"{name}{end}" for end in (".png", ".pdf", ".facts.tsv")]
    return FigureEntry(experiment, name, title, caption, paths[0], paths[1], (paths[2],))


@pytest.fixture
def study(tmp_path):
    """Arguments of write_report for two experiments, one with 30 models of two seeds each and a hostile text."""
    folder = tmp_path / "results"
    experiments = []
    for experiment, n in (("first", 30), ("second-b", 2)):
        figures = (
            figure(folder, experiment, "data_card", "Data card"),
            figure(folder, experiment, "odd name#1", NASTY, f"**Bold.** {NASTY}\n\nSecond *paragraph* with `code`."),
        )
        models = [f"model{i}" for i in range(n)]
        table = pd.DataFrame(score_rows([*models[:-1], f"{models[-1]}<i>"]))
        (folder / experiment).mkdir(parents=True)
        table.to_csv(folder / experiment / "scores.tsv", sep="\t", index=False)
        (folder / experiment / "grid.tsv").write_text("run\n")
        files = (folder / experiment / "grid.tsv",)
        scores = folder / experiment / "scores.tsv"
        experiments.append(ExperimentEntry(experiment, "A <screen>.", 2 * n, scores, figures, files))
    runs = [row for entry in experiments for row in pd.read_csv(entry.scores, sep="\t")["run"].unique()]
    costs = pd.DataFrame({"run": runs, "model": "m", "device": "GPU <1>", "seconds": range(len(runs)), "torch": "2.9"})
    costs.assign(steps=range(len(runs), 0, -1)).to_csv(folder / "cost.tsv", sep="\t", index=False)
    (folder / "config.json").write_text(json.dumps({"title": "</script>", "b": 1, "a": "ü"}))
    (folder / "provenance.html").write_text("<html></html>")
    return {
        "out": folder / "report.html",
        "title": "Title & <more>",
        "experiments": experiments,
        "cost": folder / "cost.tsv",
        "config": folder / "config.json",
        "provenance": folder / "provenance.html",
    }


class Page(HTMLParser):
    """Tags with their attributes, in order; text by the element that it is in."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.texts.append((self.tags[-1][0] if self.tags else "", text.strip()))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def written(arguments):
    write_report(**arguments)
    return arguments["out"].read_text(encoding="utf-8")


# ---- The page ------------------------------------------------------------------------------------------------------


def test_links_resolve_and_cover_every_input(study):
    page = Page(written(study))
    folder = study["out"].parent
    urls = [a["href"] for a in page.all("a")]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {url[1:] for url in urls if url.startswith("#")} <= ids
    paths = {unquote(url) for url in urls if not url.startswith("#")}
    assert all((folder / path).is_file() for path in paths)
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"report.html"}
    assert paths == made
    assert any("odd%20name%231" in url for url in urls)


def test_ids_are_unique_whatever_experiments_and_figures_are_called(study, tmp_path):
    names = ("costs", "files", "versions", "content", "data-sets", "costs-table", "data-table")
    scores = study["experiments"][0].scores
    entries = [
        ExperimentEntry(
            name, "", 1, scores, (figure(tmp_path, name, "scores"), figure(tmp_path, name, "data_card")), ()
        )
        for name in names
    ]
    page = Page(written(study | {"experiments": entries}))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {"costs", "costs.scores"} < set(ids)
    anchors = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    assert set(anchors) <= set(ids) and len(anchors) == len(set(anchors))


def test_needs_nothing_from_elsewhere(study):
    text = written(study)
    page = Page(text)
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img") if "src" in image)
    assert [base64.b64decode(image["src"].split(",")[1]) for image in page.all("img") if "src" in image] == [png()] * 4
    assert not [script for script in page.all("script") if "src" in script]
    assert {link["href"] for link in page.all("link")} == {"data:,"}
    policy = page.all("meta")[3]["content"]
    assert policy.startswith("default-src 'none'")


def test_escapes(study):
    text = written(study | {"notice": "12 < 61 & more"})
    page = Page(text)
    assert "<script>alert" not in text and "<i>" not in text
    assert len(page.all("script")) == 4  # rows of the scores, of the costs and of the key scores; the code
    assert ("title", "Title & <more>") in page.texts
    assert ("p", "12 < 61 & more") in page.texts
    assert ("span", NASTY) in page.texts  # the title of a figure


def test_same_bytes_for_the_same_inputs(study):
    first = written(study)
    study["out"].unlink()
    assert written(study) == first
    assert not list(study["out"].parent.glob(".report*"))


def test_order_and_headings(study):
    page = Page(written(study))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    figures = [f["id"] for f in page.all("figure")]
    assert figures == ["first.data_card", "first.odd-name-1", "second-b.data_card", "second-b.odd-name-1"]
    sections = [section["aria-labelledby"] for section in page.all("section")]
    assert sections == ["first", "second-b", "_costs", "_data-sets", "_versions", "_files"]
    order = [tag for tag, _ in page.tags if tag in ("img", "figcaption")]
    assert order[:8] == ["img", "figcaption"] * 4
    assert all(image["alt"].startswith("Figure") for image in page.all("img")[:4])
    assert page.all("img")[0]["width"] == "6" and page.all("img")[0]["height"] == "4"


def test_key_numbers_and_versions(study):
    page = Page(written(study))
    facts = [text for tag, text in page.texts if tag in ("dt", "dd") and text][:12]
    assert facts == [
        *("Experiments", "2", "Trainings", "64", "Total training time (h:mm:ss)", "0:33:36", "Device", "GPU <1>"),
        *("samsvae", VERSION, "torch", "2.9"),
    ]


def test_preview_without_results(study, tmp_path):
    entry = ExperimentEntry("first", "", 12, None, (), ())
    nothing = dict.fromkeys(("cost", "config", "provenance"))
    text = written(study | nothing | {"experiments": [entry], "notice": "PREVIEW: 0 of 12 trainings have finished"})
    assert "PREVIEW: 0 of 12 trainings have finished" in text
    assert "<table" not in text and "12 trainings" in text


@pytest.mark.parametrize("lost", ["cost.tsv", "provenance.html", "first/scores.tsv", "figures/first/data_card.pdf"])
def test_names_a_missing_file(study, lost):
    path = study["out"].parent / lost
    path.unlink()
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: no such file.*\.$"):
        write_report(**study)
    assert not study["out"].exists()


def test_names_a_damaged_file(study):
    study["config"].write_text("{")
    with pytest.raises(DataError, match=r"config\.json: not readable as JSON"):
        write_report(**study)
    study["config"].write_text("{}")
    figure = study["experiments"][0].figures[0]
    figure.png.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"data_card\.png: not a PNG image"):
        write_report(**study)
    figure.png.write_bytes(png())
    study["cost"].write_text("run\tseconds\ntorch\t1\n")
    with pytest.raises(DataError, match=r"cost\.tsv: no column 'device'"):
        write_report(**study)


# ---- Captions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "html"),
    [
        ("one\ntwo\n\n three \n\n\nfour", "<p>one\ntwo</p>\n<p>three</p>\n<p>four</p>"),
        ("**a**, cells; **b**, genes", "<p><strong>a</strong>, cells; <strong>b</strong>, genes</p>"),
        ("*a b* and **c *d* e**", "<p><em>a b</em> and <strong>c <em>d</em> e</strong></p>"),
        ("`x < *y*` & 2 * 3 * 4", "<p><code>x &lt; *y*</code> &amp; 2 * 3 * 4</p>"),
        ("<b>$x$</b> [a](http://b)", "<p>&lt;b&gt;$x$&lt;/b&gt; [a](http://b)</p>"),
        ("", ""),
    ],
)
def test_markup_of_captions(caption, html):
    assert markup(caption) == html


# ---- Tables --------------------------------------------------------------------------------------------------------


def test_key_scores_are_of_the_settings_best_on_validation():
    good = pd.DataFrame(score_rows(["a", "b"], mask_prior=0.1))
    bad = pd.DataFrame(score_rows(["a"], mask_prior=0.01)).assign(run=lambda t: t["run"] + "-other")
    bad["value"] = bad["value"].where(bad["split"] != "val", -99).where(bad["split"] == "val", 99)
    table = report_tables.key_table(pd.concat([bad, good], ignore_index=True))
    names = [(column.name, column.note) for column in table.columns]
    assert names[3:] == [
        ("IWELBO (nats per cell)", "test cells"),
        ("ATE-Pearson", "all conditions"),
        ("Settings chosen", "on validation data"),
    ]
    assert table.rows == [
        ["Method a", "MF", "2", "−11.00 ± 0.01", "0.505 ± 0.007", "mask prior 0.1"],
        ["Method b", "MF", "2", "−10.89 ± 0.01", "0.605 ± 0.007", ""],
    ]
    assert table.best == {(1, 3), (1, 4)}


def test_key_scores_have_a_row_per_condition_and_baselines_last():
    parts = [pd.DataFrame(score_rows(["b", "a"], fraction=f, mask_prior=0.1)) for f in (0.0, 0.5)]
    line = {"run": "no_model", "model": "no_model", "method": "baseline", "fraction": 0.5, "protocol": "published"}
    line |= {"metric": "ate_pearson", "split": "all", "value": -1e-9}
    table = report_tables.key_table(pd.concat([*parts, pd.DataFrame([line])], ignore_index=True))
    assert [row[:4] for row in table.rows] == [
        *(["Method b", "MF", "0", "2"], ["Method b", "MF", "0.5", "2"]),
        *(["Method a", "MF", "0", "2"], ["Method a", "MF", "0.5", "2"]),
        ["no model", "baseline", "0.5", ""],
    ]
    assert table.rows[-1][4:] == ["", "0.000"]
    assert {column for _, column in table.best} == {4, 5} and {row for row, _ in table.best} == {2, 3}


def test_data_sets_are_side_by_side(study):
    table = report._data_sets(study["experiments"])
    assert [column.name for column in table.columns] == ["Item", "first", "second-b"]
    assert table.rows == [["cells", "1,420", "1,420"]]


def test_no_key_scores_without_a_validation_score():
    rows = pd.DataFrame(score_rows(["a"]))
    assert report_tables.key_table(rows[rows["split"] != "val"]) is None


def test_all_scores_has_a_row_per_run_and_a_column_per_score():
    table = report_tables.score_table(pd.DataFrame(score_rows(["a", "b"])))
    assert [column.name for column in table.columns] == [
        *("Run", "Method", "Inference", "Seed", "iwelbo", "iwelbo", "ate_pearson", "ate_pearson")
    ]
    assert [column.note for column in table.columns[4:]] == [
        *("val, published", "test, published", "all, published", "test, held-out")
    ]
    assert table.rows[1] == ["a-seed1", "Method a", "MF", "1", "-9.99000", "-10.9900", "0.510000", "0.250000"]
    assert table.fixed == [("mask prior", "0.1")]
    assert [column.number for column in table.columns] == [False] * 3 + [True] * 5


def test_big_tables_are_capped(monkeypatch, study):
    monkeypatch.setattr(report_tables, "MOST_ROWS", 40)
    text = written(study)
    assert "This page contains the first 40 of 60 rows." in text
    rows = [json.loads(part) for part in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    assert [len(part) for part in rows] == [30 - report.SHOWN_ROWS, *[40 - report.SHOWN_ROWS] * 2]


# ---- In a browser --------------------------------------------------------------------------------------------------


class Browser:
    """A headless Chromium, driven through chromedriver's HTTP interface."""

    def __init__(self, address, folder):
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
        flags += " disable-component-update disable-sync"
        arguments = [f"--{flag}" for flag in flags.split()] + [f"--user-data-dir={folder}"]
        options = {"args": arguments, "mobileEmulation": {"deviceMetrics": {"width": 390, "height": 800}}}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._post(f"{address}/session", capabilities={"alwaysMatch": wanted})["sessionId"]
        self.address = f"{address}/session/{session}"

    @staticmethod
    def _post(address, /, **content):
        answer = requests.post(address, json=content, timeout=60).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def open(self, path: Path):
        self._post(f"{self.address}/url", url=path.as_uri())

    def run(self, script, *arguments):
        return self._post(f"{self.address}/execute/sync", script=script, args=list(arguments))

    def find(self, selector):
        found = self._post(f"{self.address}/element", using="css selector", value=selector)
        return next(iter(found.values()))

    def click(self, selector):
        self._post(f"{self.address}/element/{self.find(selector)}/click")

    def type(self, selector, text):
        self._post(f"{self.address}/element/{self.find(selector)}/value", text=text)

    def console(self):
        return self._post(f"{self.address}/se/log", type="browser")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = shutil.which("chromedriver")
    if not driver or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no chromium and chromedriver (apt-get install chromium chromium-driver)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with suppress(requests.ConnectionError):
                if requests.get(f"{address}/status", timeout=5).json()["value"]["ready"]:
                    break
            time.sleep(0.1)
        found = Browser(address, tmp_path_factory.mktemp("chromium"))
        yield found
        requests.delete(found.address, timeout=60)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def opened(browser, study):
    write_report(**study, notice="PREVIEW: 12 of 64 trainings have finished")
    browser.open(study["out"])
    yield browser
    assert browser.console() == []  # no error, and nothing that the page's policy has refused


COLUMN = """
    return [...document.querySelectorAll(`#${CSS.escape(arguments[0])} tbody tr`)]
        .map((row) => row.cells[arguments[1]].textContent)
"""


def test_browser_shows_images_and_fits_a_phone(opened):
    images = opened.run("return [...document.querySelectorAll('figure img')].map((image) => image.naturalWidth)")
    assert images == [6] * 4
    assert opened.run("return document.documentElement.scrollWidth") == 390
    assert opened.run("return [...document.querySelectorAll('table')].every((t) => t.closest('.scroll'))")


def test_browser_sorts(opened):
    button = "#_costs-table thead th:nth-child(2) button"
    assert opened.run(COLUMN, "_costs-table", 1)[:3] == ["0", "1", "2"]
    opened.click(button)  # numbers: the largest first
    assert opened.run(COLUMN, "_costs-table", 1)[:3] == ["63", "62", "61"]
    assert opened.run("return document.querySelector('#_costs-table th[aria-sort]').ariaSort") == "descending"
    opened.click(button)
    assert opened.run(COLUMN, "_costs-table", 1)[:11] == [str(n) for n in range(11)]
    opened.click("#_costs-table thead th:nth-child(1) button")
    assert opened.run(COLUMN, "_costs-table", 0)[:3] == ["model0-seed0", "model0-seed0", "model0-seed1"]
    assert opened.run("return document.querySelectorAll('#_costs-table th[aria-sort]').length") == 1


def test_browser_sorts_from_the_keyboard(opened):
    opened.run("document.querySelector('#_costs-table thead th:nth-child(2) button').focus()")
    opened.type("#_costs-table thead th:nth-child(2) button", "\ue007")
    assert opened.run(COLUMN, "_costs-table", 1)[0] == "63"


def test_browser_filters_and_shows_more(opened):
    assert len(opened.run(COLUMN, "_costs-table", 0)) == report.SHOWN_ROWS
    opened.click("#_costs ~ .data .more button")
    assert len(opened.run(COLUMN, "_costs-table", 0)) == 64
    opened.type("#_costs ~ .data input", "SEED1 model2")
    runs = opened.run(COLUMN, "_costs-table", 0)
    assert len(runs) == 11 and all("model2" in run and "seed1" in run for run in runs)
    assert opened.run("return document.querySelector('#_costs ~ .data output').value") == "11 of 64 rows match"
    opened.type("#_costs ~ .data input", " nothing")
    assert opened.run(COLUMN, "_costs-table", 0) == []


def test_browser_opens_a_figure_and_closes_it(opened):
    opened.click("figure a.image")
    assert opened.run("return document.querySelector('dialog').open")
    assert opened.run("return document.querySelector('dialog img').naturalWidth") == 6
    opened.click("dialog button")
    assert not opened.run("return document.querySelector('dialog').open")
