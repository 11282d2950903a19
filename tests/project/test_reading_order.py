"The reading-order script passes the course and finds planted faults."

import json
from pathlib import Path

import check_reading_order as checker
import project
import pytest

TABLES = """## The symbols

| symbol | in code | meaning | shape | taught in |
|---|---|---|---|---|
| K | `num_slots` | slots | ≥ 1 | [11_later](11_later.ipynb) |
| $\\varepsilon$ | `eps` | small | 1e-8 | [11_later](11_later.ipynb) |

## The words

| word | what it means here | taught in |
|---|---|---|
| slot | a vector | [11_later](11_later.ipynb) |"""
NAMES = ["course/00_notation.ipynb", "library/10_first.ipynb", "course/11_later.ipynb"]


def faults(
    folder: Path, first: str, later: str = "A slot. There are $K$, and $\\varepsilon$."
) -> list[str]:
    "The faults of a small course with this text in its first notebook."
    for name, text in zip(NAMES, (TABLES, first, later)):
        cells = [{"cell_type": "markdown", "source": part} for part in text.split("\n---\n")]
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"cells": cells}))
    return checker.check(folder, NAMES)


def test_the_course_introduces_what_it_uses():
    assert checker.check(project.NBS, project.reading_order()) == []


@pytest.mark.parametrize(
    "first",
    [
        "Nothing special.",
        "A slot, see [11_later](../course/11_later.ipynb).",
        "See [the words](../course/00_notation.ipynb#the-words).\n---\nTwo slots, and $K$.",
        "`slot` in code, and slotted.",
        "$$x = 2y$$ where $y$ is a number.",
        "$$x = 2y$$\n---\nHere y is a number.",
    ],
)
def test_what_may_be_written(tmp_path, first):
    assert faults(tmp_path, first) == []


@pytest.mark.parametrize(
    "first, complaint",
    [
        ("A slot is used.", "uses slot"),
        ("Slots!\n---\nonly later [11_later](../course/11_later.ipynb)", "uses slot"),
        ("There are $K$ of them.", "uses K"),
        ("$$\\frac{1}{\\varepsilon}$$", "uses $\\varepsilon$"),
        ("$$x = 2y$$", "a formula uses y"),
        ("$$x = \\beta$$", "a formula uses \\beta"),
    ],
)
def test_planted_fault(tmp_path, first, complaint):
    assert any(complaint in fault for fault in faults(tmp_path, first))


def test_a_notebook_must_use_what_it_is_said_to_introduce(tmp_path):
    assert any(
        "is said to introduce slot" in fault
        for fault in faults(tmp_path, "Nothing.", "There are $K$, and $\\varepsilon$.")
    )
