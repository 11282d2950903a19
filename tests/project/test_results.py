"The results pages: they are what the records make, and a new record enters them by itself."

import json
import shutil
import statistics
import sys
from pathlib import Path

import pytest

from slot_attention_nbdev.models.weights import shipped_weights

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import make_results  # noqa: E402
import ship_weights  # noqa: E402


@pytest.fixture
def results(tmp_path, monkeypatch):
    "A copy of the records that may be added to."
    shutil.copytree(ROOT / "results", tmp_path / "results")
    monkeypatch.setattr(make_results, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def section(title: str) -> str:
    "The text of one section."
    return dict(make_results.sections())[title]


def row(text: str, start: str) -> list[str]:
    "The cells of the one row that begins so."
    (line,) = [line for line in text.split("\n") if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def put(results, name: str, **changes) -> dict:
    "A record made from one of the demo's."
    record = json.loads((results / "tetrominoes_small" / "seed0.json").read_text())
    record = (
        record
        | changes
        | {"recipe": record["recipe"] | {"name": name.split("/")[0]} | changes.get("recipe", {})}
    )
    (results / name).parent.mkdir(exist_ok=True)
    (results / name).write_text(json.dumps(record))
    return record


def test_the_committed_pages_are_what_the_records_make():
    assert make_results.readme() == (ROOT / "results" / "README.md").read_text(), (
        "run scripts/make_results.py"
    )
    assert make_results.is_current(), "run scripts/make_results.py"


def test_mean_and_spread_are_those_of_the_records():
    records = [
        json.loads(path.read_text())
        for path in (ROOT / "results" / "tetrominoes_small").glob("seed*.json")
    ]
    assert all(record["finished"] for record in records)
    found = [record["final"]["fg_ari"] for record in records]
    cells = row(section("Object discovery on Tetrominoes"), "`tetrominoes_small` | ")
    assert cells[1].startswith(f"{len(found)} of {len(found)} finished")
    assert cells[3] == f"{statistics.mean(found):.4f} ± {statistics.stdev(found):.4f}"


def test_a_new_record_enters_by_itself(results):
    assert "\n- `tetrominoes_paper`: 5 of 5 seeds, on a GPU" in section(
        "Object discovery on Tetrominoes"
    )
    for seed, score in enumerate((0.99, 0.98, 0.97)):
        put(
            results,
            f"tetrominoes_paper/seed{seed}.json",
            recipe={"model": "paper"},
            seed=seed,
            seconds=7200.0,
            hardware={"gpu": "Some GPU", "cpu": "x"},
            final={"fg_ari": score, "n": 320},
        )
    text = section("Object discovery on Tetrominoes")
    assert row(text, "`tetrominoes_paper` |")[1:4] == [
        "3 of 3 finished",
        "2 h 0 min on average",
        "0.9800 ± 0.0100",
    ]
    assert "\n- `tetrominoes_paper`: 2 of 5 seeds, on a GPU" in text
    assert "Some GPU" in row(text, "`tetrominoes_paper/seed1.json`")[5]
    assert (
        make_results.readme() != (ROOT / "results" / "README.md").read_text()
        and not make_results.is_current()
    )


def test_failed_runs_are_named(results):
    put(results, "tetrominoes_paper/seed0.json", seed=0, final={"fg_ari": 0.98, "n": 320})
    put(results, "tetrominoes_paper/seed1.json", seed=1, final={"fg_ari": 0.40, "n": 320})
    put(
        results,
        "tetrominoes_paper/seed2.json",
        seed=2,
        final=None,
        finished=False,
        failed="loss not finite in step 7",
    )
    text = section("Object discovery on Tetrominoes")
    assert (
        row(text, "`tetrominoes_paper` |")[1] == "2 of 3 finished; failed: 2; far below the best: 1"
    )
    assert row(text, "`tetrominoes_paper/seed2.json`")[2] == "✕ failed; loss not finite in step 7"
    assert row(text, "`tetrominoes_paper/seed1.json`")[2] == "✓ finished, far below the best"
    assert "\n- `tetrominoes_paper`: 3 of 5 seeds" in text


def test_runs_of_other_versions_are_seeds_of_the_same_experiment(results):
    before = len(list((results / "tetrominoes_small").glob("seed*.json")))
    older = put(results, "tetrominoes_small/seed9.json", seed=9)
    for key in ("precision", "resolution", "compile"):  # settings that came later
        del older["recipe"][key]
    (results / "tetrominoes_small" / "seed9.json").write_text(json.dumps(older))
    cells = row(section("Object discovery on Tetrominoes"), "`tetrominoes_small` |")
    assert cells[1].startswith(f"{before + 1} of {before + 1} finished")


CONTROLS = {"untrained": {"fg_ari": 0.01, "ari": 0.02, "miou": 0.03}}


def put_curve(results, seed: int, *points: tuple[float, float], **changes) -> None:
    "A record with this curve: seconds and FG-ARI."
    curve = [
        {"step": step, "seconds": seconds, "fg_ari": score}
        for step, (seconds, score) in enumerate(points)
    ]
    final = {"fg_ari": points[-1][1], "n": 320, "controls": CONTROLS}
    about = {"seed": seed, "curve": curve, "seconds": points[-1][0] + 5, "final": final}
    put(results, f"tetrominoes_paper/seed{seed}.json", **about | changes)


def race_row(start: str) -> list[str]:
    "The cells of a row of the race."
    return row(section("A race on one core"), start)


def test_the_race_is_read_from_the_curves(results):
    put_curve(results, 0, (10.0, 0.5), (20.0, 0.85), (30.0, 0.7), (40.0, 0.96))
    put_curve(results, 1, (15.0, 0.81), (90.0, 0.93), threads=2)
    final = {"fg_ari": 0.91, "n": 320, "controls": CONTROLS}  # with more draws than the curve
    put_curve(results, 2, (10.0, 0.2), (99.0, 0.79), seconds=99.0, final=final)
    put_curve(results, 3, (10.0, 0.2))
    times = ["30 s (3 of 4)", "99 s (3 of 4)", "– (1 of 4)"]
    assert race_row("`tetrominoes_paper` |")[-3:] == times
    control = race_row("*control:* untrained model, `tetrominoes_paper` |")
    assert control[-3:] == ["–"] * 3 and all(cell[-1].isdigit() for cell in control[2:5])


def test_only_cpus_and_known_models_race(results):
    put_curve(results, 0, (10.0, 0.99), device="cuda")
    put_curve(results, 1, (10.0, 0.99), recipe={"model": "gone"})
    assert "`tetrominoes_paper`" not in section("A race on one core")


def test_a_recipe_that_nobody_foresaw_is_not_lost(results):
    put(results, "my_own/seed0.json", final={"fg_ari": 0.5, "n": 320})
    assert "my_own/seed0.json" in section("Other runs")


def test_every_record_stands_in_the_readme():
    text = make_results.readme()
    for path in (ROOT / "results").rglob("*.json"):
        name = str(path.relative_to(ROOT / "results"))
        if name == "experiments.json":  # which is no record
            continue
        assert any(word in text for word in (name, path.name, f"{path.parent.name}/`")), name


def test_what_was_not_run_says_so():
    text = make_results.readme()
    for recipe in (
        "tetrominoes_paper",
        "multi_dsprites_paper",
        "clevr6_paper",
        "clevr10_properties_paper",
    ):
        if not (ROOT / "results" / recipe).exists():
            assert f"\n- `{recipe}`: 5 of 5 seeds" in text and "**Not run yet:**" in text, recipe


def test_what_a_step_of_each_method_costs_stands_beside_its_scores():
    record = json.loads((ROOT / "results" / "benchmarks" / "methods.json").read_text())
    measured = [row for size in record["methods"] for row in size]
    head, _, *rows = tables(section("Slot Attention and its relatives"))[-1]
    assert head == list(measured[0]) and len(rows) == len(measured) > 0
    for cells, row in zip(rows, measured, strict=True):
        for cell, (name, value) in zip(cells, row.items(), strict=True):
            if isinstance(value, float):
                assert float(cell) == pytest.approx(value, rel=5e-3), name
            else:
                assert cell.replace(",", "") == str(value), name


def test_where_a_goal_was_reached_is_read_from_the_curve(results):
    put(
        results,
        "tetrominoes_paper/seed0.json",
        curve=[
            {"step": 1, "seconds": 5.0, "fg_ari": 0.5},
            {"step": 2, "seconds": 61.4, "fg_ari": 0.96},
        ],
        final={"fg_ari": 0.96, "n": 320},
    )
    assert row(section("Object discovery on Tetrominoes"), "`tetrominoes_paper/seed0.json`")[
        -2:
    ] == ["61 s", "never"]


def tables(text: str) -> list[list[list[str]]]:
    "The Markdown tables of a text, as rows of cells."
    found = [[]]
    for line in text.split("\n"):
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.replace("\\|", "").strip("|").split("|")]
            found[-1].append(cells)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def lone_scores(text: str) -> list[str]:
    "The tables that name FG-ARI without ARI and mIoU, by their first row."
    heads = [table[0] for table in tables(text)]
    return [str(head) for head in heads if "FG-ARI" in head and not {"ARI", "mIoU"} <= set(head)]


def without_controls(text: str) -> list[str]:
    "The sections whose models are scored, and whose controls are not."
    missing = []
    for part in text.split("\n## ")[1:]:
        title = part.split("\n")[0]
        rows = [row for table in tables(part) if "FG-ARI" in table[0] for row in table[1:]]
        names = [row[0] for row in rows]
        ours = [row for row in rows if row[0].startswith("`") and any(map(str.isdigit, row[-1]))]
        for control in ("untrained model", "color rule", "position rule"):
            if ours and not any(control in name for name in names):
                missing.append(f"{title}: {control}")
    return missing


def test_no_table_of_scores_without_controls():
    text = make_results.readme()
    assert lone_scores(text) == [] and without_controls(text) == []
    page = "\n\n".join(source for _, source in make_results.cells())
    assert lone_scores(page) == [] and without_controls(page) == []


def test_a_table_without_controls_is_found(results):
    text = make_results.readme()
    bare = "\n".join(line for line in text.split("\n") if "color rule" not in line)
    assert "Object discovery on Tetrominoes: color rule" in without_controls(bare)
    assert lone_scores("| who | FG-ARI |\n|---|---|\n| a | 1 |")


def test_every_record_has_its_controls():
    for path in [
        *(ROOT / "results").rglob("*.json"),
        *ROOT.glob("slot_attention_nbdev/weights/*.json"),
    ]:
        record = json.loads(path.read_text())
        recipe = record.get("recipe")
        if not isinstance(recipe, dict) or "data" not in recipe or not record.get("final"):
            continue  # no record of a run, or one that did not finish
        controls = record["final"]["controls"]
        if recipe.get("model") in ("properties_mlp", "properties_dspn"):  # they have no masks
            assert 0 <= controls["untrained"]["ap_inf"] <= 1, path
            continue
        # the encoder of this one is not on record
        wanted = {"untrained", "color_rule", "position_rule"}
        wanted -= {"untrained"} if path.stem == "coarse_tokens-seed0" else set()
        assert wanted <= controls.keys(), path
        for scores in controls.values():
            assert all(-1 <= scores[key] <= 1 for key in ("fg_ari", "ari", "miou")), path


def test_cards_are_not_empty():
    assert "tetrominoes_small" in shipped_weights()  # or the next test would run for no card
    for name in shipped_weights():
        assert (ROOT / "slot_attention_nbdev" / "weights" / f"{name}.md").read_text().strip(), name


@pytest.mark.parametrize("name", shipped_weights())
def test_cards_show_their_controls(name):
    card = (ROOT / "slot_attention_nbdev" / "weights" / f"{name}.md").read_text()
    for control in ("untrained model", "color rule", "position rule"):
        (line,) = [line for line in card.split("\n") if f"*beside it:* {control}" in line]
        assert all(metric in line for metric in ("FG-ARI", "ARI", "mIoU"))


def test_shipped_weights_are_small():
    files = shipped_weights().values()
    assert 0 < sum(path.stat().st_size for path in files) < ship_weights.LIMIT <= 4_000_000
