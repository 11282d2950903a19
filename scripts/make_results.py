#!/usr/bin/env python3
"""Write the results tables from the records: results/README.md and the page nbs/results.ipynb.

    python scripts/make_results.py          # write both, and execute the page where it has changed
    python scripts/make_results.py --check  # check whether both are what the records make

A run's record goes to results/RECIPE/seedN.json, its picture to seedN-slots.png; nothing else is
needed. What was planned, what the paper reached and what the other records measure stands in
results/experiments.json.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import nbformat
from nbdev.clean import nbdev_clean

from slot_attention_nbdev.apps.report import (
    METRIC_NAMES,
    SIGNS,
    RunSummary,
    count_seeds,
    find_runs,
    format_duration,
    format_mean_std,
    format_number,
    group_seeds,
    hardware_of,
    headline_metrics,
    is_far_below_best,
)
from slot_attention_nbdev.core import atomic_write
from slot_attention_nbdev.experiments.methods import method_table
from slot_attention_nbdev.metrics.controls import (
    CONTROL_METRICS,
    CONTROL_NAMES,
    average_controls,
    control_name,
    format_scores,
)
from slot_attention_nbdev.models.base import MODELS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PAGE = ROOT / "nbs" / "results.ipynb"
NOT_RUN = "**not run yet**"


def markdown_table(rows: list[tuple[str, ...]]) -> str:
    "A table whose cells are Markdown already, the header first."
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def short(commit: str | None) -> str:
    "A commit's first digits; a star where files had been edited."
    return (
        "unknown"
        if not commit
        else f"`{commit[:8]}`" + ("\\*" if commit.endswith("-dirty") else "")
    )


def plus_minus(values: list[float]) -> str:
    "What the paper says: mean and standard deviation."
    return f"{values[0]:.3f} ± {values[1]:.3f}"


def seconds_to(run: RunSummary, key: str, goal: float) -> float | None:
    "Seconds until a metric first reached a goal, the score at the end included; None if never."
    end = {"seconds": run.record.get("seconds"), **(run.record.get("final") or {})}
    for point in (*run.record["curve"], end):
        if (point.get(key) or 0) >= goal:
            return point["seconds"]
    return None


def reached(run: RunSummary, key: str, goal: float) -> str:
    "When a run first reached a goal, by its own clock."
    seconds = seconds_to(run, key, goal)
    return "never" if seconds is None else f"{seconds:,.0f} s"


def name_of(group: list[RunSummary], groups: list[list[RunSummary]]) -> str:
    "A recipe's name, with the records' where it was run with other settings, too."
    recipe = group[0].record["recipe"]["name"]
    same = [
        [run.name.split("/")[1] for run in other]
        for other in groups
        if other[0].record["recipe"]["name"] == recipe
    ]
    names = [run.name.split("/")[1] for run in group]
    # not named after what was special about them
    plain = [each for each in same if all(name.startswith("seed") for name in each)]
    return f"`{recipe}`" + ("" if len(same) == 1 or plain == [names] else f" ({', '.join(names)})")


def finals_of(group: list[RunSummary]) -> list[dict]:
    "The final metrics of the runs that finished."
    return [run.record["final"] for run in group if run.state == "finished"]


def control_summary(keys: list[str], groups: list[list[RunSummary]]) -> list[tuple[str, ...]]:
    "The untrained model of each experiment, and the rules on each set of scenes."
    rows, untrained = {}, {}
    for group in groups:
        for control, scores in average_controls(finals_of(group)).items():
            cells = tuple(format_number(scores.get(key)) for key in keys)
            if control == "untrained":
                recipe = group[0].record["recipe"]["name"]
                untrained.setdefault(recipe, []).append((group, cells))
            else:  # the same for every experiment on the same scenes
                name = f"*control:* {control_name(control, scores)}"
                rows.setdefault((name, cells), (name, "–", "–", *cells))
    for recipe, found in untrained.items():
        alike = len({cells for _, cells in found}) == 1  # one row for all settings
        for group, cells in found[:1] if alike else found:
            name = f"`{recipe}`" if alike else name_of(group, groups)
            seeds = str(len(finals_of(group)))
            rows[name, cells] = (f"*control:* untrained model, {name}", seeds, "–", *cells)
    measured = lambda row: any(cell != "–" for cell in row[3:])
    return sorted(filter(measured, rows.values()), key=lambda row: "untrained" not in row[0])


def attention_section(runs: list[RunSummary]) -> list[str]:
    "The attention of set predictors as segments, beside its controls."
    rows, groups = {}, group_seeds(runs)
    for group in groups:
        controls = average_controls(finals_of(group))
        for control, scores in controls.items() if "attention" in controls else ():
            name, cells = control_name(control, scores), tuple(format_scores(scores))
            if control == "attention":
                name += f", {name_of(group, groups)}"
            # the untrained model and the rules are the same for every setting
            order = list(CONTROL_NAMES).index(control)
            rows.setdefault((name, cells), (order, name, *cells))
    if not rows:
        return []
    header = ("segments", *(METRIC_NAMES[key] for key in CONTROL_METRICS))
    return [
        "The attention of the last iteration, taken as masks, beside its controls:",
        "",
        markdown_table([header, *(row[1:] for row in sorted(rows.values()))]),
        "",
    ]


def summary_rows(about: dict, runs: list[RunSummary]) -> list[tuple[str, ...]]:
    "What the paper reached, then what each experiment reached, then what stands beside it."
    keys = about["metrics"]
    groups = group_seeds(runs)
    rows = [("who", "seeds", "time of a run", *(METRIC_NAMES.get(key, key) for key in keys))]
    for each in about["paper"]:
        scores = [plus_minus(each[key]) if key in each else "–" for key in keys]
        rows.append((f"*paper:* {each['who']}", each.get("note", "–"), "–", *scores))
    for group in groups:
        records = [run.record for run in group if run.state == "finished"]
        time = "–"
        if records:
            time = format_duration(sum(record["seconds"] for record in records) / len(records))
        if len(records) > 1:
            time += " on average"
        scores = [format_mean_std([record["final"].get(key) for record in records]) for key in keys]
        rows.append((name_of(group, groups), count_seeds(group), time, *scores))
    return rows + control_summary(keys, groups)


def waiting_lines(about: dict, runs: list[RunSummary], notes: dict[str, str]) -> list[str]:
    "The planned seeds that have no record yet."
    lines = []
    for plan in about["planned"]:
        done = {
            run.record["seed"]
            for run in runs
            if run.record["recipe"]["name"] == plan["recipe"]
            and run.state == "finished"
            and run.name not in notes
        }
        missing = plan["seeds"] - len(done)
        if missing > 0:
            seeds = f"{missing} of {plan['seeds']} seed{'s' * (plan['seeds'] > 1)}"
            lines.append(f"- `{plan['recipe']}`: {seeds}, on {plan['where']}; {plan['what']}")
    return lines


def record_rows(
    about: dict, runs: list[RunSummary], notes: dict[str, str]
) -> list[tuple[str, ...]]:
    "Each run of a task."
    keys, goals = about["metrics"], about.get("goals", ())
    header = ["record", "seed", "state", "steps", "time", "hardware", "commit"]
    header += [METRIC_NAMES.get(key, key) for key in keys]
    header += [f"to {METRIC_NAMES[keys[0]]} {goal}" for goal in goals]
    rows = [tuple(header)]
    for group in group_seeds(runs):
        for run in group:
            record = run.record
            final = record.get("final") or {}
            state = f"{SIGNS[run.state]} {run.state}"
            if is_far_below_best(run, group):
                state += ", far below the best"
            note = notes.get(run.name, run.why)
            if note:
                state += f"; {note}"
            cells = (
                f"`{run.name}.json`",
                str(record["seed"]),
                state,
                f"{record['step']:,}",
                format_duration(record["seconds"]),
                hardware_of(record),
                short(record["commit"]),
                *(format_number(final.get(key)) for key in keys),
                *(reached(run, keys[0], goal) for goal in goals),
            )
            rows.append(cells)
    return rows


def task(about: dict, runs: list[RunSummary], notes: dict[str, str]) -> list[str]:
    "The section of one task: what was reached beside the paper, then each run."
    text = [about["worth"], ""]
    rows = summary_rows(about, runs)
    if len(rows) > 1:
        text += [markdown_table(rows), ""]
    if about.get("source"):
        text += [
            "*Mean ± standard deviation over seeds, on held-out scenes. The paper's numbers: "
            f"{about['source']}; given there in per cent.*",
            "",
        ]
    text += attention_section(runs)
    waiting = waiting_lines(about, runs, notes)
    if waiting:
        text += ["**Not run yet:**", "", *waiting, ""]
    if runs:
        text += ["Each run:", "", markdown_table(record_rows(about, runs, notes)), ""]
    return text


def study_rows(about: dict, runs: list[RunSummary]) -> list[tuple[str, ...]]:
    "The experiments of a study whose records are those of runs, best first, and their controls."
    keys = about.get("metrics", ("fg_ari", "ari", "miou", "mse", "background_split"))
    names = {**METRIC_NAMES, "background_split": "slots that share the background"}
    rows = [("setting", "seeds", "time of a run", *(names.get(key, key) for key in keys))]
    score = lambda group: sum(run.metrics.get(keys[0]) or 0 for run in group) / len(group)
    groups = group_seeds(runs)
    # a recipe of its own says what it is about, one with other settings what its record is called
    recipes = [group[0].record["recipe"]["name"] for group in groups]
    for group in sorted(groups, key=score, reverse=True):
        recipe = group[0].record["recipe"]
        setting = name_of(group, groups)
        if recipes.count(recipe["name"]) == 1:
            setting = f"{recipe.get('about', '')} ({setting})"
        records = [run.record for run in group if run.record.get("final")]
        cells = (
            setting,
            count_seeds(group, judge=False),
            format_duration(sum(record["seconds"] for record in records) / max(1, len(records))),
            *(format_mean_std([record["final"].get(key) for record in records]) for key in keys),
        )
        rows.append(cells)
    file = RESULTS / "controls.json"
    controls = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for control, scores in controls.get(about["folder"], {}).items():
        cells = (format_number(scores.get(key)) for key in keys)
        rows.append((f"*control:* {control_name(control, scores)}", "–", "–", *cells))
    return rows + control_summary(keys, groups)  # where each run measured its own


def file_rows(files: list[Path]) -> list[tuple[str, ...]]:
    "The records of a study that are not those of runs."
    records = [(file, json.loads(file.read_text(encoding="utf-8"))) for file in files]
    if all("question" in record for _, record in records):
        header = ("record", "question", "runs", "lesson")
        rows = [
            (f"`{file.name}`", record["question"], str(len(record["runs"])), record["lesson"])
            for file, record in records
        ]
        return [header, *rows]
    rows = [("record", "seed", "time", "hardware", "commit")]
    for file, record in records:
        cells = (
            f"`{file.name}`",
            str(record.get("seed", "–")),
            format_duration(record.get("seconds")),
            hardware_of(record),
            short(record.get("commit")),
        )
        rows.append(cells)
    return rows


def cost_section(about: dict) -> list[str]:
    "What a training step of each method of a study costs, where that was measured."
    file = RESULTS / about.get("costs", "none")
    if not file.is_file():
        return []
    record = json.loads(file.read_text(encoding="utf-8"))
    rows = [row for size in record["methods"] for row in size]
    return [
        "What a training step costs at the published sizes. MB: what is kept for the backward "
        f"pass. The last two columns are in units of {rows[0]['method']}'s, on the same images.",
        "",
        markdown_table(method_table(rows)),
        "",
        f"*Commit {short(record['commit'])}; {hardware_of(record)}. Record: `{about['costs']}`.*",
        "",
    ]


def study(about: dict, runs: list[RunSummary]) -> list[str]:
    "The section of a study with records of its own kind."
    folder = RESULTS / about["folder"]
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    what = about["what"][0].upper() + about["what"][1:]
    opening = f"{what}; {about['command']}."
    if about["command"].startswith("python"):
        opening = f"{what}. Records: `{about['folder']}/`; made by: `{about['command']}`."
    if not files:
        return [opening, "", NOT_RUN + ".", ""]
    if not runs:
        return [opening, "", markdown_table(file_rows(files)), ""]
    masks = attention_section(runs)
    commits = sorted({short(run.record["commit"]) for run in runs})
    where = f"*Commit {', '.join(commits)}; {hardware_of(runs[0].record)}."
    own = any((run.record.get("final") or {}).get("controls") for run in runs)
    where += " A dash: these runs did not record it."
    where += "*" if own else " Controls: `controls.json`.*"
    table = markdown_table(study_rows(about, runs))
    return [opening, "", table, "", *masks, where, "", *cost_section(about)]


def value_at(record, path: str):
    "The value at a path such as modules.0.ours ms; names may hold dots and spaces."
    while path:
        if isinstance(record, list):
            head, _, path = path.partition(".")
            record = record[int(head)]
            continue
        head = max((key for key in record if path == key or path.startswith(key + ".")), key=len)
        record = record[head]
        path = path[len(head) + 1 :]
    return record


def measurement_row(about: dict) -> tuple[str, ...]:
    "What one record of a measurement holds."
    file = RESULTS / about["file"]
    if not file.exists():
        return about["what"], NOT_RUN, "–", "–", f"`{about['command']}`"
    record = json.loads(file.read_text(encoding="utf-8"))
    values = [
        f"{name} {format_number(value_at(record, path))}" for name, path in about["says"].items()
    ]
    machine = record.get("machine", {})
    hardware = machine.get("processor", "unknown")
    if "hardware" in record:
        hardware = hardware_of(record)
    commit = short(record.get("commit") or machine.get("commit"))
    made = f"`{about['file']}`: `{about['command']}`"
    return about["what"], "; ".join(values) or "see the record", hardware, commit, made


def measurements(about: list[dict], wanted: list[dict]) -> list[str]:
    "What was measured beside training, and what is still missing."
    rows = [("what", "numbers", "hardware", "commit", "record, and how it is made")]
    rows += [measurement_row(each) for each in about]
    listed = {each["file"] for each in about}
    for each in wanted:
        files = [file for pattern in each["files"] for file in RESULTS.glob(pattern)]
        found = sorted({str(file.relative_to(RESULTS)) for file in files})
        listed |= set(found)
        numbers = "see the record" if found else f"{NOT_RUN}; needs a GPU"
        made = f"`{each['command']}`"
        if found:
            made = ", ".join(f"`{name}`" for name in found) + ": " + made
        rows.append((each["what"], numbers, "–", "–", made))
    there = {str(file.relative_to(RESULTS)) for file in RESULTS.glob("benchmarks/*.json")}
    rows += [("–", "see the record", "–", "–", f"`{name}`") for name in sorted(there - listed)]
    return [markdown_table(rows), ""]


def read_plan() -> dict:
    "What was planned, and what the paper reached."
    return json.loads((RESULTS / "experiments.json").read_text(encoding="utf-8"))


def runs_of(about: dict, runs: list[RunSummary]) -> list[RunSummary]:
    "The runs that belong to a task or a study: those in its folders."
    patterns = about.get("folders", [about.get("folder")])
    return [
        run for run in runs if any(fnmatch(run.name.split("/")[0], pattern) for pattern in patterns)
    ]


def enters_race(run: RunSummary) -> bool:
    "Whether a run was measured on a CPU, of a model that the package has."
    record = run.record
    scored = any("fg_ari" in point for point in record["curve"])
    return record.get("device") == "cpu" and scored and record["recipe"].get("model") in MODELS


def race_cell(group: list[RunSummary], goal: float) -> str:
    "The median over all seeds, those that never reached the goal counted as slowest."
    times = [(seconds_to(run, "fg_ari", goal), run.record["threads"]) for run in group]
    found = sorted(seconds * threads for seconds, threads in times if seconds is not None)
    count = f"{len(found)} of {len(times)}"
    middle = (len(times) - 1) // 2
    return f"{found[middle]:,.0f} s ({count})" if middle < len(found) else f"– ({count})"


def race(runs: list[RunSummary]) -> str:
    "Seconds of one core to a given FG-ARI, for every recipe that was run on a CPU."
    header = ("who", "data", "FG-ARI", "ARI", "mIoU", *(f"to {goal:.2f}" for goal in RACE_GOALS))
    rows = {}
    groups = group_seeds([run for run in runs if enters_race(run)])
    for group in groups:
        data = f"`{group[0].record['recipe']['data']}`"
        finals = finals_of(group)
        scores = [format_mean_std([final.get(key) for final in finals]) for key in RACE_METRICS]
        times = [race_cell(group, goal) for goal in RACE_GOALS]
        rows[data, 0, name_of(group, groups)] = [*scores, *times]
        for control, found in average_controls(finals).items():
            name = f"*control:* {control_name(control, found)}"
            if control == "untrained":
                name += f", {name_of(group, groups)}"
            scores = [format_number(found.get(key)) for key in RACE_METRICS]
            rows[data, 1, name] = [*scores, *(["–"] * len(RACE_GOALS))]
    table = [(name, data, *cells) for (data, _, name), cells in sorted(rows.items())]
    return "\n".join([RACE, "", markdown_table([header, *table]) if table else NOT_RUN, ""])


def sections() -> list[tuple[str, str]]:
    "The sections: title and Markdown."
    plan = read_plan()
    rest = [run._replace(picture=None) for run in find_runs([RESULTS])]
    found = [("A race on one core", race(rest))]
    for about in (*plan["tasks"], *plan["studies"]):
        mine = runs_of(about, rest)
        rest = [run for run in rest if run not in mine]
        lines = task(about, mine, plan["notes"]) if "folders" in about else study(about, mine)
        found.append((about["title"], "\n".join(lines)))
    if rest:
        about = {
            "metrics": list(dict.fromkeys(key for run in rest for key in headline_metrics(run))),
            "paper": [],
            "planned": [],
            "worth": "Runs of recipes that belong to none of these.",
        }
        found.append(("Other runs", "\n".join(task(about, rest, plan["notes"]))))
    lines = measurements(plan["measurements"], plan["wanted"])
    return [*found, ("Measurements", "\n".join(lines))]


RACE_GOALS = (0.80, 0.90, 0.95)
RACE_METRICS = ("fg_ari", "ari", "miou")
RACE = (
    "How many seconds of one CPU core until FG-ARI on held-out scenes reaches 0.80, 0.90, 0.95? "
    "Every recipe of the package that was run on a CPU takes part. The time is that of its "
    "records, times the threads, and training alone counts: up to the first evaluation that "
    "reaches the goal. During training each evaluation has one draw of initial slots; the last "
    "one has as many as the recipe says, and its scores stand here. A time is the median over "
    "all seeds, a seed that never gets there counting as the slowest; behind it stands how many "
    "got there. A dash: fewer than half. Other programs may have run beside; a quiet machine is "
    "faster.\n\nTo enter a run: `slot-attention train RECIPE --seed 0 --device cpu --out "
    "runs/mine`, copy `runs/mine/record.json` to `results/RECIPE/seed0.json`, then `python "
    "scripts/make_results.py`. A new recipe is an entry of `RECIPES`.\n\nA goal that a control "
    "reaches without training says how long a model takes, and not that it takes a model."
)


OPENING = (
    "Every number in the documents comes from a record: recipe, seed, commit, hardware, seconds, "
    "curve, final metrics on held-out scenes, as the run itself wrote them.\n"
    "Failed runs are kept. What has not been run says so. The scenes were generated by this "
    "library unless a row says otherwise. A star at a commit: files had been edited.\n"
)
HOW = (
    "This page is made from the records by `python scripts/make_results.py`; a new "
    "`RECIPE/seedN.json`, as `slot-attention train RECIPE --seed N` leaves it under the name "
    "`record.json`, enters it when the script is run again. To compare runs: "
    "`slot-attention report results/RECIPE`. Beside a record lie its pictures, `seedN-slots.png` "
    "and `seedN-curve.png`.\n"
)


def readme() -> str:
    "results/README.md."
    parts = [
        "# Results\n",
        OPENING,
        HOW,
        CONTROLS.format(controls="../nbs/library/23_controls.ipynb"),
    ]
    parts += [f"## {title}\n\n{text}" for title, text in sections()]
    return "\n".join(parts).rstrip() + "\n"


PLOT = """#| code-fold: true
#| code-summary: "How it is drawn"
#| fig-alt: "{alt}"
#| fig-cap: "{caption}"
reached = {reached}
paper = {paper}
controls = {controls}
figure, axes = plt.subplots(figsize=(8, 0.45 * len(reached) + 1.8), dpi=90, layout="constrained")
for row, (name, runs) in enumerate(reached.items()):
    mean, std = paper.get(name.split(":")[0], (None, None))
    if mean is not None:
        half = max(std, 0.004)
        paper_bar = axes.barh(row, 2 * half, left=mean - half, color="#E69F00", alpha=0.7)
    for value, finished in runs:
        fill = "#0072B2" if finished else "white"
        axes.plot(value, row, "o", color="#0072B2", markerfacecolor=fill, markersize=7)
    for value, mark in zip(controls.get(name, ()), "|x+"):
        if value is not None:
            axes.plot(value, row, mark, color="#D55E00", markersize=9)
axes.set_yticks(range(len(reached)), [name.split(": ")[1] for name in reached])
axes.set(xlim=(0, 1.02), xlabel="FG-ARI, or AP for sets, on held-out scenes")
handles = [paper_bar, plt.Line2D([], [], marker="o", color="#0072B2", linestyle="", markersize=7)]
handles += [plt.Line2D([], [], marker=mark, color="#D55E00", linestyle="") for mark in "|x+"]
labels = ["the paper: mean ± std", "ours: a seed", "untrained", "color rule", "position rule"]
figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
axes.grid(axis="x", alpha=0.3)
plt.show()"""


CAPTION = (
    "Dots: our seeds, hollow if unfinished. Bars: the paper's mean and standard deviation. "
    "Orange marks: what learned nothing, on the same scenes."
)


def plot_source() -> str:
    "The cell that draws what was reached."
    runs = find_runs([RESULTS])
    reached = {}
    paper = {}
    beside = {}
    for about in read_plan()["tasks"]:
        title = about["title"].split(" on ")[1]
        if about["title"].startswith("Set"):
            title += ", sets"
        if about["paper"]:
            paper[title] = tuple(about["paper"][0][about["metrics"][0]])
        groups = group_seeds(runs_of(about, runs))
        if not groups:
            reached[f"{title}: {title} (not run yet)"] = []
        for group in groups:
            scores = [round(run.selection_metric[1] or 0, 4) for run in group]
            finished = [run.state == "finished" for run in group]
            name = name_of(group, groups).replace("`", "")
            reached[f"{title}: {name}"] = list(zip(scores, finished))
            controls = average_controls(finals_of(group))
            if controls:
                key = group[0].selection_metric[0]
                named = (controls.get(c, {}) for c in ("untrained", "color_rule", "position_rule"))
                values = [scores.get(key) for scores in named]
                beside[f"{title}: {name}"] = [x if x is None else round(x, 4) for x in values]
    ends = [
        f"{name.split(': ')[1]}, {' and '.join(f'{value:.2f}' for value, _ in scores)}"
        for name, scores in reached.items()
        if scores
    ]
    alt = "Dots for each seed of each recipe, with bars for the paper and marks for the controls: "
    alt += f"{'; '.join(ends)}."
    source = PLOT.format(alt=alt, caption=CAPTION, reached=reached, paper=paper, controls=beside)
    return laid_out(source)


def laid_out(source: str) -> str:
    "The source of a cell, laid out as the formatter of the notebooks does."
    ruff = Path(sys.executable).with_name("ruff")
    command = [ruff, "format", "--stdin-filename", PAGE.with_suffix(".py"), "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    return done.stdout.rstrip()


TITLE = (
    "# Results\n\n> What was reached, by which run, on what machine, beside the paper's numbers; "
    "and what has not been run yet"
)
FACTS = (
    "**You will learn** which results stand behind this course, which runs failed, and what "
    "nobody has run yet.\n\n"
    "**Prerequisites:** none; the words are in "
    "[Notation, and a map of the course](course/00_notation.ipynb#the-words), the measures in "
    "[Segmentation metrics](course/08_metrics.ipynb) and "
    "[Average precision of sets](library/13_set_metrics.ipynb).\n\n"
    "**Time:** 5 minutes to read, a second to run.\n\n**Hardware:** any CPU."
)
CONTROLS = (
    "Beside the models stand their **controls**, measured on the same scenes: the untrained model, "
    "a rule of color, a rule of position, which is given the background and hence has a high ARI. "
    "They learned nothing; a model that does not beat them shows nothing "
    "([Controls: rules that learn nothing]({controls}) "
    "explains the rules). FG-ARI leaves the background out, so ARI and mIoU stand beside it.\n"
)
BEFORE = (
    "\n## At a glance\n\nExpect a row for each recipe that was run: our seeds as dots, the paper's "
    "result, where it has one, as a bar. Recipes for CPUs are small models of our own; only where "
    "a row says `_paper` is it the paper's model and schedule."
)
AFTER = (
    "A dot left of its bar is a result below the paper's; no bar, no such experiment there. "
    "Which seeds failed, and how, stands below."
)
ENDING = (
    "## Summary\n\nOne command makes this page from the records; what is not on record is not "
    "claimed. How a record comes about: [Checkpoints](library/08_checkpoints.ipynb); how to "
    "compare runs of your own: [Comparing runs](library/12_report.ipynb).\n\n"
    "**Next:** [Notation, and a map of the course](course/00_notation.ipynb). "
    "**Previous:** [Gallery](gallery.ipynb)."
    "\n\n## References\n\n"
    "- F. Locatello et al. *Object-Centric Learning with Slot Attention.* NeurIPS 2020. "
    "[arXiv:2006.15055](https://arxiv.org/abs/2006.15055)\n"
    "- P. Emami et al. *Efficient Iterative Amortized Inference for Learning Symmetric and "
    "Disentangled Multi-Object Representations.* ICML 2021. "
    "[arXiv:2106.03630](https://arxiv.org/abs/2106.03630)"
)


def cells() -> list[tuple[str, str]]:
    "The page's cells: kind and source."
    return [
        ("markdown", TITLE),
        ("markdown", FACTS),
        ("code", "import matplotlib.pyplot as plt"),
        ("markdown", OPENING + CONTROLS.format(controls="library/23_controls.ipynb") + BEFORE),
        ("code", plot_source()),
        ("markdown", AFTER),
        *(("markdown", f"## {title}\n\n{text}".rstrip()) for title, text in sections()),
        ("markdown", ENDING),
    ]


def is_current() -> bool:
    "Whether the page's sources are what the records make."
    if not PAGE.exists():
        return False
    there = [
        (cell["cell_type"], "".join(cell["source"]))
        for cell in json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    ]
    return there == cells()


def write_page() -> None:
    "Write the notebook and execute it."
    from execute_notebooks import execute

    page = nbformat.v4.new_notebook()
    page.metadata = {
        "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}
    }
    for index, (kind, source) in enumerate(cells()):
        new_cell = nbformat.v4.new_code_cell
        if kind == "markdown":
            new_cell = nbformat.v4.new_markdown_cell
        name = hashlib.sha256(f"{index}{source[:40]}".encode()).hexdigest()[:8]
        page.cells.append(new_cell(source, id=name))
    with atomic_write(PAGE) as temporary:
        nbformat.write(page, temporary)
    execute(PAGE, {"notest", "slow", "gpu"})
    nbdev_clean(str(PAGE))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    check_help = "write nothing; exit 1 if a page is not what the records make"
    parser.add_argument("--check", action="store_true", help=check_help)
    arguments = parser.parse_args()
    target = RESULTS / "README.md"
    text = readme()
    if arguments.check:
        stale = [] if is_current() else [PAGE]
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            stale.append(target)
        for path in stale:
            print(f"{path}: not what the records make; run scripts/make_results.py")
        if not stale:
            print("The results pages are what the records make.")
        return 1 if stale else 0
    with atomic_write(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if not is_current():
        write_page()
    print(f"{target}\n{PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
