"Listing and comparing runs: states, grouping, and the page, as text and in a real browser."

import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import time
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import pytest
from slot_attention_nbdev import cli
from slot_attention_nbdev.cli import main
from slot_attention_nbdev.core import TrainingError
from slot_attention_nbdev.train.recipes import get_recipe
from slot_attention_nbdev.apps.report import (
    draw_curves,
    find_runs,
    format_mean_std,
    group_seeds,
    html_page,
    summarize_runs,
)
from slot_attention_nbdev.models.weights import load_record, save_record
from slot_attention_nbdev.train.checkpoints import read_run_state
from slot_attention_nbdev.train.trainer import train

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
SHORT = dict(steps=4, log_every=2, eval_every=2, eval_images=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A folder with four runs: two finished, one stopped, one failed."
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(
            get_recipe("tiny", **SHORT), folder / f"good{seed}", seed, device="cpu", progress=False
        )
    with pytest.raises(TrainingError):
        fail(folder / "bad")
    shutil.copytree(folder / "good0", folder / "half")
    record = load_record(folder / "half" / "record.json")
    save_record(
        folder / "half" / "record.json", record | {"finished": False, "final": None, "step": 2}
    )
    (folder / "half" / "slots.png").unlink()
    return folder


def fail(out: Path):
    "A run that meets a number which is none."
    from slot_attention_nbdev.train import trainer as training

    measure, calls = training.Trainer.flush_metrics, []

    def poisoned(self):
        calls.append(1)
        if self.window and len(calls) > 2:
            self.window[-1] = self.window[-1] * float("nan")
        return measure(self)

    training.Trainer.flush_metrics = poisoned
    try:
        train(get_recipe("tiny", **SHORT), out, 2, device="cpu", progress=False)
    finally:
        training.Trainer.flush_metrics = measure


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    "A report on three committed runs and on those four."
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert (
        main(
            [
                "report",
                str(RESULTS / "tetrominoes_small" / "seed0.json"),
                str(RESULTS / "tetrominoes_small" / "seed1.json"),
                str(runs),
                "--out",
                str(out),
            ]
        )
        == 0
    )
    return out


def test_states(runs):
    assert {run.name: run.state for run in find_runs([runs])} == {
        "good0": "finished",
        "good1": "finished",
        "half": "stopped",
        "bad": "failed",
    }
    (bad,) = find_runs([runs / "bad"])
    assert "not finite in step" in bad.why and not (runs / "good0" / "state.json").exists()


def test_a_run_is_running_while_its_process_lives(tmp_path):
    code = """
import sys
import time
from slot_attention_nbdev.train.checkpoints import write_run_state

with write_run_state(sys.argv[1]):
    print("on", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "on\n"
        assert read_run_state(tmp_path, {"finished": False}) == ("running", "")
    finally:
        process.kill()
        process.wait()
    assert read_run_state(tmp_path, {"finished": False}) == ("stopped", "")


@pytest.mark.parametrize(
    "note",
    [
        "",
        "[]",
        "{}",
        '{"state": "running"}',
        '{"state": "running", "process": "x", "started": 0}',
        '{"state": "running", "process": -1, "started": 0}',
    ],
)
def test_a_note_that_is_none_is_not_believed(note, tmp_path):
    (tmp_path / "state.json").write_text(note)
    assert read_run_state(tmp_path, {"finished": False}) == ("stopped", "")


def test_the_list(runs, capsys):
    assert main(["runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[:5]] == [
        "run",
        "bad",
        "good0",
        "good1",
        "half",
    ] and "bad failed: loss or gradient not finite" in out
    assert main(["runs", str(runs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["runs"]
    final = load_record(runs / "good1" / "record.json")["final"]
    assert [each["fg_ari"] for each in told if each["run"] == "good1"] == [final["fg_ari"]]


def test_seeds_of_one_experiment_are_averaged_and_others_are_not():
    runs = find_runs([RESULTS / "what_goes_wrong", RESULTS / "tetrominoes_small"])
    assert len(group_seeds(runs)) >= 4
    found = [
        json.loads(path.read_text())["final"]["fg_ari"]
        for path in (RESULTS / "tetrominoes_small").glob("seed*.json")
    ]
    text = f"{statistics.mean(found):.4f} ± {statistics.stdev(found):.4f}"
    assert format_mean_std(found) == text
    assert any(text in line for line in summarize_runs(runs))


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    assert not re.findall(
        r"""(?:src|href|action|srcset)=["'](?!data:)|url\(|@import|<script|<iframe|<link""", text
    )
    assert all(re.search(r'alt="[^"]{20,}"', tag) for tag in re.findall(r"<img[^>]*>", text))
    assert "✕ failed: loss or gradient not finite" in text and "■ stopped" in text
    assert (
        f"{load_record(RESULTS / 'tetrominoes_small' / 'seed0.json')['final']['fg_ari']:.4f}"
        in text
    )


def test_a_picture_of_curves_is_the_same_twice_and_asks_for_nothing():
    runs = find_runs([RESULTS / "tetrominoes_small"])
    svg = draw_curves(runs, "loss")
    assert svg == draw_curves(runs, "loss") and svg.count("<svg") == 1
    assert not re.findall(r"""(?:href|src)=["'](?!#)|url\((?!#)|@import""", svg)


def test_markdown(runs, tmp_path):
    assert (
        main(
            [
                "report",
                str(runs / "good0"),
                str(runs / "good1"),
                "--format",
                "markdown",
                "--out",
                str(tmp_path / "note.md"),
            ]
        )
        == 0
    )
    text = (tmp_path / "note.md").read_text()
    for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (tmp_path / name).stat().st_size > 500
    assert text.startswith("# 2 runs of tiny") and "2 seeds, mean ± std" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "no_such"], "there is no no_such"),
        (["report", "."], "holds no run"),
        (["runs"], "there is no runs"),
        (["report", str(RESULTS / "tetrominoes_small"), "--out", "."], "is a folder"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_runs_may_follow_an_option():
    assert cli.parse(["report", "a", "--out", "x.html", "b"]).runs == [Path("a"), Path("b")]


def test_a_broken_record_hides_nobody(runs, tmp_path):
    shutil.copytree(runs / "good0", tmp_path / "good")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "record.json").write_text('{"recipe": {"na')
    found = find_runs([tmp_path])
    assert [(run.name, run.state) for run in found] == [("good", "finished"), ("torn", "failed")]
    assert "no valid JSON" in html_page(found)


def test_long_curves_stay_small():
    (run,) = find_runs([RESULTS / "tetrominoes_small" / "seed0.json"])
    long = run._replace(
        record=run.record
        | {"curve": [{"step": i, "loss": 1 / i, "seconds": i} for i in range(1, 20_001)]}
    )
    start = time.process_time()
    assert len(draw_curves([long], "loss")) < 60_000 and time.process_time() - start < 5


def test_names_of_runs_are_no_markup_and_no_formulas():
    (run,) = find_runs([RESULTS / "tetrominoes_small" / "seed0.json"])
    names = ["_hidden <b>", r"$\frac$", "a & b"]
    runs = [run._replace(name=name) for name in names]
    svg = draw_curves(runs, "loss")
    shown = "".join(ElementTree.fromstring(svg).itertext())
    assert "mathdefault" not in shown  # the numbers of the axes are formulas
    for run in runs:
        assert escape(run.label, quote=False) in svg and escape(run.name) in html_page(runs)


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(page, browser, width):
    context = browser.new_context(viewport={"width": width, "height": 800})
    tab = context.new_page()
    asked = []
    problems = []
    tab.on(
        "request",
        lambda request: (
            asked.append(request.url) if not request.url.startswith(("data:", "file:")) else None
        ),
    )
    tab.on("console", lambda message: problems.append(message.text))
    tab.goto(page.as_uri())
    assert asked == [] and problems == []
    # nothing has to be pushed sideways but wide tables
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth > 100)"
    )
    assert tab.locator("text=✕ failed").first.is_visible()
    assert tab.locator("text=Settings in common").first.is_visible()
    context.close()


HOSTILE = "../../../x <script>alert(1)</script> [a](javascript:b) $\\frac$ | \x1b[31m\n# h \ud800"


@pytest.fixture
def strange(tmp_path):
    "A record full of a stranger's names."
    record = load_record(RESULTS / "tetrominoes_small" / "seed0.json")
    record["curve"] = [point | {HOSTILE: 0.5, "a/b": 1.0, "": 2.0} for point in record["curve"]]
    record["final"] |= {HOSTILE: 0.5}
    record["recipe"] |= {HOSTILE: HOSTILE, "name": HOSTILE, "data": HOSTILE}
    record["hardware"] = {"cpu": HOSTILE}
    record["commit"] = HOSTILE
    folder = tmp_path / "runs" / "strange"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "state.json").write_text(json.dumps({"state": "failed", "why": HOSTILE}))
    (folder / "slots.png").symlink_to("/etc/passwd")
    return folder


@pytest.mark.parametrize("form", ["markdown", "html"])
def test_a_strangers_names_are_data(strange, tmp_path, form):
    before = {path for path in tmp_path.rglob("*")}
    out = tmp_path / "deep" / "deeper" / "page"
    assert main(["report", str(strange), "--format", form, "--out", str(out)]) == 0
    made = {path for path in tmp_path.rglob("*")} - before
    assert all(path == out.parent.parent or out.parent in (path, *path.parents) for path in made)
    text = out.read_text()
    assert "<script" not in text and "\x1b" not in text and "root:" not in text
    assert "\n# h" not in text
    if form == "markdown":
        assert "[a](" not in text.replace("\\[a\\](", "")
        for name in re.findall(r"!\[(?:[^\]\\]|\\.)+\]\(([^)]+)\)", text):
            assert ElementTree.parse(out.parent / name) and ".." not in name


@pytest.mark.parametrize(
    "odd",
    [
        {"step": "y"},
        {"step": None},
        {"step": 10**400},
        {"seed": [1]},
        {"seconds": "long"},
        {"seconds": math.inf},
        {"threads": "4"},
        {"hardware": "fast"},
        {"hardware": {"cpu": ["a"]}},
        {"commit": 7},
        {"curve": ["a"]},
        {"curve": [{"loss": 1.0}]},
        {"curve": [{"step": "y", "loss": 1.0}]},
        {"curve": [{"step": 1, "loss": "low"}]},
        {"curve": [{"step": 1, "loss": math.nan, "fg_ari": 10**400}]},
        {"final": "good"},
        {"final": {"fg_ari": "high"}},
        {"final": {"fg_ari": math.nan, "n": None}},
        {"final": {"fg_ari": 0.5, "controls": "some"}},
        {"final": {"fg_ari": 0.5, "controls": {"color": 3, "what": {"fg_ari": "x"}}}},
        {"recipe": {"name": 3, "steps": "many"}},
        {"recipe": {"name": ["a"]}},
        {"recipe": {"name": "a", "data": {}}},
    ],
)
def test_one_odd_record_hides_nobody(tmp_path, capsys, odd):
    good = load_record(RESULTS / "tetrominoes_small" / "seed0.json")
    for name, record in {"good": good, "odd": good | odd}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(json.dumps(record))
    assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "good" in shown and "odd" in shown
    for form in ("html", "markdown"):
        out = tmp_path / f"page.{form}"
        assert main(["report", str(tmp_path), "--format", form, "--out", str(out)]) == 0


def test_two_copies_of_a_seed_are_one(tmp_path):
    for name in ("seed0", "seed1", "seed0 again"):
        (tmp_path / name).mkdir()
        source = RESULTS / "tetrominoes_small" / f"{name[:5]}.json"
        shutil.copy(source, tmp_path / name / "record.json")
    first, more, again = (
        find_runs([tmp_path / name])[0] for name in ("seed0", "seed1", "seed0 again")
    )
    (line,) = summarize_runs([first, again])
    assert "±" not in line and "1 of 1 finished; 1 more run of the same seeds not counted" in line
    assert "seeds, mean" not in html_page([first, again])
    (line,) = summarize_runs([first, again, more])
    assert summarize_runs([first, more])[0].partition(";")[0] == line.partition(";")[0]
    assert "2 seeds, mean ± std" in html_page([first, again, more])
