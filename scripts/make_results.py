#!/usr/bin/env python3
"""Write the results from the records: results/README.md and the page nbs/results.ipynb.

    python scripts/make_results.py          # write both, and execute the page where it has changed
    python scripts/make_results.py --check  # say whether both are what the records make

A run's record goes to results/RECIPE/seedN.json, its picture to seedN-slots.png; nothing else
needs to be told. What was planned, what the paper reached and what the other records measure
stands in results/experiments.json.
"""

import argparse
import hashlib
import json
import sys
from fnmatch import fnmatch
from pathlib import Path

from slot_attention_nbdev.apps.compare import (
    NAMES,
    Story,
    duration,
    experiments,
    find_runs,
    lags,
    number,
    spread,
)
from slot_attention_nbdev.core import atomic_write
from slot_attention_nbdev.apps.report import SIGNS, hardware_of, markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "results", ROOT / "nbs" / "results.ipynb"
NOT_RUN = "**not run yet**"


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


def seconds_to(story: Story, key: str, goal: float) -> str:
    "When a run first reached a goal, by its own clock."
    return next(
        (
            f"{point['seconds']:,.0f} s"
            for point in story.record["curve"]
            if (point.get(key) or 0) >= goal
        ),
        "never",
    )


def seeds(group: list[Story], judge: bool = True) -> str:
    "Which seeds, and how they ended."
    ended = [story for story in group if story.state == "finished"]
    rest = [
        f"{story.state}: {story.record['seed']}" for story in group if story.state != "finished"
    ]
    low = [str(story.record["seed"]) for story in group if judge and lags(story, group)]
    return (
        f"{len(ended)} of {len(group)} finished"
        + "".join(f"; {each}" for each in rest)
        + (f"; far below the best: {', '.join(low)}" if low else "")
    )


def name_of(group: list[Story], groups: list[list[Story]]) -> str:
    "A recipe's name, with the records' where it was run with other settings, too."
    recipe = group[0].record["recipe"]["name"]
    same = [
        [story.name.split("/")[1] for story in other]
        for other in groups
        if other[0].record["recipe"]["name"] == recipe
    ]
    names = [story.name.split("/")[1] for story in group]
    # not named after what was special about them
    plain = [each for each in same if all(name.startswith("seed") for name in each)]
    return f"`{recipe}`" + ("" if len(same) == 1 or plain == [names] else f" ({', '.join(names)})")


def task(about: dict, stories: list[Story], notes: dict[str, str]) -> list[str]:
    "The section of one task: what was reached beside the paper, then each run."
    keys, groups = about["figures"], experiments(stories)
    rows = [("who", "seeds", "time of a run", *(NAMES.get(key, key) for key in keys))]
    for each in about["paper"]:
        rows.append(
            (
                f"*paper:* {each['who']}",
                each.get("note", "–"),
                "–",
                *(plus_minus(each[key]) if key in each else "–" for key in keys),
            )
        )
    for group in groups:
        done = [story for story in group if story.state == "finished"]
        time = (
            spread([story.record["seconds"] for story in done])
            if len(done) < 2
            else f"{duration(sum(story.record['seconds'] for story in done) / len(done))} on"
            " average"
        )
        time = duration(done[0].record["seconds"]) if len(done) == 1 else time
        rows.append(
            (
                name_of(group, groups),
                seeds(group),
                time,
                *(spread([story.record["final"].get(key) for story in done]) for key in keys),
            )
        )
    waiting = []
    for plan in about["planned"]:
        there = {
            story.record["seed"]
            for story in stories
            if story.record["recipe"]["name"] == plan["recipe"]
            and story.state == "finished"
            and story.name not in notes
        }
        missing = plan["seeds"] - len(there)
        if missing > 0:
            waiting.append(
                f"- `{plan['recipe']}`: {missing} of {plan['seeds']}"
                f" seed{'s' * (plan['seeds'] > 1)}, on {plan['where']}; {plan['what']}"
            )
    text = [about["worth"], "", markdown_table(rows), ""] if len(rows) > 1 else [about["worth"], ""]
    if about.get("source"):
        text += [
            "*Mean ± standard deviation over seeds, on held-out scenes. The paper's"
            f" figures: {about['source']}; given there in per cent.*",
            "",
        ]
    if waiting:
        text += ["**Not run yet:**", "", *waiting, ""]
    if stories:
        head = (
            "record",
            "seed",
            "state",
            "steps",
            "time",
            "hardware",
            "commit",
            *(NAMES.get(key, key) for key in keys),
            *(f"to {NAMES[keys[0]]} {goal}" for goal in about.get("goals", ())),
        )
        runs = [head]
        for group in groups:
            for story in group:
                record, final = story.record, story.record.get("final") or {}
                state = (
                    f"{SIGNS[story.state]} {story.state}"
                    + (", far below the best" if lags(story, group) else "")
                    + (
                        f"; {notes[story.name]}"
                        if story.name in notes
                        else f"; {story.why}"
                        if story.why
                        else ""
                    )
                )
                runs.append(
                    (
                        f"`{story.name}.json`",
                        str(record["seed"]),
                        state,
                        f"{record['step']:,}",
                        duration(record["seconds"]),
                        hardware_of(record),
                        short(record["commit"]),
                        *(number(final.get(key)) for key in keys),
                        *(seconds_to(story, keys[0], goal) for goal in about.get("goals", ())),
                    )
                )
        text += ["Each run:", "", markdown_table(runs), ""]
    return text


def study(about: dict, stories: list[Story]) -> list[str]:
    "The section of a study with records of its own kind."
    folder = RESULTS / about["folder"]
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    text = [
        f"{about['what'][0].upper()}{about['what'][1:]}. Records: `{about['folder']}/`;"
        f" made by: `{about['command']}`."
        if about["command"].startswith("python")
        else f"{about['what'][0].upper()}{about['what'][1:]}; {about['command']}.",
        "",
    ]
    if not files:
        return [*text, NOT_RUN + ".", ""]
    if stories:
        keys = ("fg_ari", "mse", "background_split")
        rows = [
            ("setting", "seeds", "time of a run", "FG-ARI", "MSE", "slots that share the ground")
        ]
        for group in sorted(
            experiments(stories),
            key=lambda group: -sum(story.latest.get("fg_ari") or 0 for story in group) / len(group),
        ):
            ended = [story.record for story in group if story.record.get("final")]
            rows.append(
                (
                    f"{group[0].record['recipe'].get('about', '')}"
                    f" (`{group[0].record['recipe']['name']}`)",
                    seeds(group, judge=False),
                    duration(sum(record["seconds"] for record in ended) / max(1, len(ended))),
                    *(spread([record["final"].get(key) for record in ended]) for key in keys),
                )
            )
        commits = sorted({short(story.record["commit"]) for story in stories})
        return [
            *text,
            markdown_table(rows),
            "",
            f"*Commit {', '.join(commits)}; {hardware_of(stories[0].record)}.*",
            "",
        ]
    records = [(file, json.loads(file.read_text(encoding="utf-8"))) for file in files]
    if all("question" in record for _, record in records):
        rows = [
            ("record", "question", "runs", "lesson"),
            *(
                (f"`{file.name}`", record["question"], str(len(record["runs"])), record["lesson"])
                for file, record in records
            ),
        ]
    else:
        rows = [
            ("record", "seed", "time", "hardware", "commit"),
            *(
                (
                    f"`{file.name}`",
                    str(record.get("seed", "–")),
                    duration(record.get("seconds")),
                    hardware_of(record),
                    short(record.get("commit")),
                )
                for file, record in records
            ),
        ]
    return [*text, markdown_table(rows), ""]


def reach(record, path: str):
    "The value at a path such as modules.0.ours ms; names may hold dots and spaces."
    while path:
        if isinstance(record, list):
            head, _, path = path.partition(".")
            record = record[int(head)]
            continue
        head = max((key for key in record if path == key or path.startswith(key + ".")), key=len)
        record, path = record[head], path[len(head) + 1 :]
    return record


def measurements(about: list[dict], wanted: list[dict]) -> list[str]:
    "What was measured beside training, and what still waits."
    rows = [("what", "figures", "hardware", "commit", "record, and how it is made")]
    for each in about:
        file = RESULTS / each["file"]
        if not file.exists():
            rows.append((each["what"], NOT_RUN, "–", "–", f"`{each['command']}`"))
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        says = (
            "; ".join(
                f"{name} {number(reach(record, path))}" for name, path in each["says"].items()
            )
            or "see the record"
        )
        commit = record.get("commit") or record.get("machine", {}).get("commit")
        where = (
            hardware_of(record)
            if "hardware" in record
            else record.get("machine", {}).get("processor", "unknown")
        )
        rows.append(
            (each["what"], says, where, short(commit), f"`{each['file']}`: `{each['command']}`")
        )
    listed = {each["file"] for each in about}
    for each in wanted:
        found = sorted(
            {
                str(file.relative_to(RESULTS))
                for pattern in each["files"]
                for file in RESULTS.glob(pattern)
            }
        )
        listed |= set(found)
        rows.append(
            (
                each["what"],
                "see the record" if found else f"{NOT_RUN}; needs a GPU",
                "–",
                "–",
                (", ".join(f"`{name}`" for name in found) + ": " if found else "")
                + f"`{each['command']}`",
            )
        )
    rest = sorted(
        {str(file.relative_to(RESULTS)) for file in RESULTS.glob("benchmarks/*.json")} - listed
    )
    rows += [("–", "see the record", "–", "–", f"`{name}`") for name in rest]
    return [markdown_table(rows), ""]


def sections() -> list[tuple[str, str]]:
    "The sections: title and Markdown."
    plan = json.loads((RESULTS / "experiments.json").read_text(encoding="utf-8"))
    stories = [story._replace(picture=None) for story in find_runs([RESULTS])]
    found, told = [], set()
    for about in plan["tasks"]:
        mine = [
            story
            for story in stories
            if story.name not in told
            and any(fnmatch(story.name.split("/")[0], pattern) for pattern in about["folders"])
        ]
        told |= {story.name for story in mine}
        found.append((about["title"], "\n".join(task(about, mine, plan["notes"]))))
    for about in plan["studies"]:
        mine = [
            story
            for story in stories
            if story.name not in told and story.name.split("/")[0] == about["folder"]
        ]
        told |= {story.name for story in mine}
        found.append((about["title"], "\n".join(study(about, mine))))
    rest = [story for story in stories if story.name not in told]
    if rest:
        keys = list(dict.fromkeys(story.merit[0] for story in rest))
        found.append(
            (
                "Other runs",
                "\n".join(
                    task(
                        {
                            "figures": keys,
                            "paper": [],
                            "planned": [],
                            "worth": "Runs of recipes that belong to none of these.",
                        },
                        rest,
                        plan["notes"],
                    )
                ),
            )
        )
    found.append(("Measurements", "\n".join(measurements(plan["measurements"], plan["wanted"]))))
    return found


OPENING = (
    "Every number in the documents comes from a record: recipe, seed, commit, hardware, seconds,"
    " curve, final metrics on held-out scenes, as the run itself wrote them.\n"
    "Failed runs are kept. What has not been run says so. The scenes were generated by this library"
    " unless a row says otherwise. A star at a commit: files had been edited.\n"
)


def readme() -> str:
    "results/README.md."
    parts = ["# Results\n", OPENING]
    parts += [
        "This page is made from the records by `python scripts/make_results.py`; a new"
        " `RECIPE/seedN.json`, as `slot-attention train RECIPE --seed N` leaves it under"
        " the name `record.json`, enters it when the script is run again. To look at runs"
        " side by side: `slot-attention report results/RECIPE`. Beside a record lie its"
        " pictures, `seedN-slots.png` and `seedN-curve.png`;"
        " `tetrominoes_fast/growing.npz` holds masks during training, for"
        " `nbs/course/09_train_on_cpu.ipynb`.\n"
    ]
    for title, text in sections():
        parts.append(f"## {title}\n\n{text}")
    return "\n".join(parts).rstrip() + "\n"


PLOT = """#| code-fold: true
#| code-summary: "How it is drawn"
#| fig-alt: "{alt}"
#| fig-cap: "{caption}"
reached = {reached}
paper = {paper}
figure, axes = plt.subplots(figsize=(8, 0.45 * len(reached) + 1.3), dpi=90, layout="constrained")
for row, (name, runs) in enumerate(reached.items()):
    mean, std = paper.get(name.split(":")[0], (None, None))
    if mean is not None:
        half = max(std, 0.004)
        bar = dict(left=mean - half, height=0.8, color="#E69F00", alpha=0.7)
        paper_bar = axes.barh(row, 2 * half, **bar)
    for value, ended in runs:
        fill = "#0072B2" if ended else "white"
        axes.plot(value, row, "o", color="#0072B2", markerfacecolor=fill, markersize=7)
axes.set_yticks(range(len(reached)), [name.split(": ")[1] for name in reached])
axes.set(xlim=(0, 1.02), xlabel="FG-ARI, or AP for sets, on held-out scenes")
seed = plt.Line2D([], [], marker="o", color="#0072B2", linestyle="", markersize=7)
labels = ["the paper: mean ± std", "ours: a seed"]
axes.legend([paper_bar, seed], labels, loc="upper left", frameon=False, fontsize=9)
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
axes.grid(axis="x", alpha=0.3)
plt.show()"""


def as_code(values: dict) -> str:
    "A dictionary as code, with a list that is too long for a line on several."
    text = "{\n"
    for key, value in values.items():
        line = f"    {key!r}: {value!r},\n"
        if len(line) > 101:
            items = "".join(f"        {item!r},\n" for item in value)
            line = f"    {key!r}: [\n{items}    ],\n"
        text += line
    return text.replace("'", '"') + "}"


def plot_source() -> str:
    "The cell that draws what was reached."
    plan = json.loads((RESULTS / "experiments.json").read_text(encoding="utf-8"))
    stories = find_runs([RESULTS])
    reached = {}
    paper = {}
    for about in plan["tasks"]:
        key = about["figures"][0]
        short_title = about["title"].split(" on ")[1] + (
            ", sets" if about["title"].startswith("Set") else ""
        )
        if about["paper"]:
            paper[short_title] = tuple(about["paper"][0][key])
        mine = [
            story
            for story in stories
            if any(fnmatch(story.name.split("/")[0], pattern) for pattern in about["folders"])
        ]
        if not mine:
            reached[f"{short_title}: {short_title} (not run yet)"] = []
        for group in experiments(mine):
            groups = experiments(mine)
            name = name_of(group, groups).replace("`", "")
            reached[f"{short_title}: {name}"] = [
                (round(story.merit[1] or 0, 4), story.state == "finished") for story in group
            ]
    alt = "; ".join(
        f"{name.split(': ')[1]}, {' and '.join(f'{value:.2f}' for value, _ in runs)}"
        for name, runs in reached.items()
        if runs
    )
    return PLOT.format(
        caption="Each dot is a seed of ours, hollow where the run did not finish;"
        " the bars are the paper's mean and standard deviation.",
        alt=f"Dots for each seed of each recipe, with bars for the paper: {alt}.",
        reached=as_code(reached),
        paper=as_code(paper),
    )


def cells() -> list[tuple[str, str]]:
    "The page's cells: kind and source."
    head = (
        "# Results\n\n> What was reached, by which run, on what machine, beside the"
        " paper's figures; and what has not been run yet"
    )
    second = (
        "**You will learn** which results stand behind this course, which runs failed,"
        " and what nobody has run yet.\n\n"
        "**Prerequisites:** none; the words are in"
        " [notation](course/00_notation.ipynb#the-words), the measures in"
        " [metrics](course/08_metrics.ipynb) and [set_metrics](library/13_set_metrics.ipynb).\n\n"
        "**Time:** 5 minutes to read, a second to run.\n\n**Hardware:** any CPU."
    )
    before = (
        OPENING + "\n## At a glance\n\nExpect a row for each recipe that was run: our seeds as"
        " dots, the paper's result, where it has one, as a bar. Recipes for CPUs are"
        " small models of our own; only where a row says `_paper` is it the paper's model"
        " and schedule."
    )
    after = (
        "A dot left of its bar is a result below the paper's; no bar, no such experiment"
        " there. Which seeds failed, and how, stands below."
    )
    found = [
        ("markdown", head),
        ("markdown", second),
        ("code", "import matplotlib.pyplot as plt"),
        ("markdown", before),
        ("code", plot_source()),
        ("markdown", after),
    ]
    found += [("markdown", f"## {title}\n\n{text}".rstrip()) for title, text in sections()]
    ending = (
        "## Summary\n\nOne command makes this page from the records; what is not on"
        " record is not claimed. How a record comes about:"
        " [checkpoints](library/08_checkpoints.ipynb); how to compare runs of your own: [report](library/12_report.ipynb).\n\n"
        "**Next:** [notation](course/00_notation.ipynb). **Previous:**"
        " [gallery](gallery.ipynb).\n\n## References\n\n"
        "- F. Locatello et al. *Object-Centric Learning with Slot Attention.* NeurIPS"
        " 2020. [arXiv:2006.15055](https://arxiv.org/abs/2006.15055)\n"
        "- P. Emami et al. *Efficient Iterative Amortized Inference for Learning"
        " Symmetric and Disentangled Multi-Object Representations.* ICML 2021."
        " [arXiv:2106.03630](https://arxiv.org/abs/2106.03630)"
    )
    return [*found, ("markdown", ending)]


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

    notebook = {
        "cells": [],
        "metadata": {
            "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    for index, (kind, source) in enumerate(cells()):
        name = hashlib.sha256(f"{index}{source[:40]}".encode()).hexdigest()[:8]
        notebook["cells"].append(
            {
                "cell_type": kind,
                "id": name,
                "metadata": {},
                "source": source.splitlines(keepends=True),
            }
            | ({"execution_count": None, "outputs": []} if kind == "code" else {})
        )
    with atomic_write(PAGE) as temporary:
        temporary.write_text(
            json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    execute(PAGE, {"notest", "slow", "gpu"})
    done = json.loads(PAGE.read_text(encoding="utf-8"))  # as nbdev_clean would leave it
    for cell in done["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell["execution_count"] = None
            for output in cell["outputs"]:
                output["execution_count"] = (
                    None
                    if output["output_type"] == "execute_result"
                    else output.get("execution_count")
                )
                if output["output_type"] != "execute_result":
                    output.pop("execution_count")
    done["metadata"] = notebook["metadata"]
    with atomic_write(PAGE) as temporary:
        temporary.write_text(
            json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 if a page is not what the records make",
    )
    arguments = parser.parse_args()
    text, target = readme(), RESULTS / "README.md"
    stale = [
        str(path.relative_to(ROOT))
        for path, good in (
            (target, target.exists() and target.read_text(encoding="utf-8") == text),
            (PAGE, is_current()),
        )
        if not good
    ]
    if arguments.check:
        print(
            "\n".join(
                f"{name}: not what the records make; run scripts/make_results.py" for name in stale
            )
            or "The results are what the records make."
        )
        return 1 if stale else 0
    with atomic_write(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if not is_current():
        write_page()
    print(f"{target}\n{PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
