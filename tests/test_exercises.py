"Exercises: every check refuses an unsolved notebook and accepts the solution; worksheets run and hold no solution."

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import blank_solutions  # noqa: E402
import check_exercises  # noqa: E402

NOTEBOOKS = sorted((ROOT / "nbs").glob("[a-z]*/[0-9]*.ipynb"))
SOLUTIONS = sorted((ROOT / "nbs" / "solutions").glob("*_solutions.ipynb"))
FAST = ("notation", "core", "attention", "tfrecord_scenes")


def by_speed(paths):
    "Most notebooks are left to the slow run."
    return [
        pytest.param(
            p,
            id=p.stem,
            marks=[] if p.stem.removesuffix("_solutions") in FAST else pytest.mark.slow,
        )
        for p in paths
    ]


@pytest.mark.parametrize(
    "chapter",
    [pytest.param("fast"), *(pytest.param(digit, marks=pytest.mark.slow) for digit in "1234567")],
)
def test_checks_refuse_the_unsolved_and_accept_the_solution(chapter):
    notebooks = [
        path
        for path in NOTEBOOKS
        if (
            path.stem in FAST
            if chapter == "fast"
            else path.stem not in FAST and path.stem.startswith(chapter)
        )
    ]
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        ROOT / "scripts" / "check_exercises.py",
        *notebooks,
    ]
    # a process of their own: notebooks fork workers, and some hold threads
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("every check holds") == len(notebooks) > 0


def test_what_the_checks_need_is_run_and_nothing_else():
    cells = [
        "import math",
        "seen = []",
        "unseen = 1 / 0",
        "seen.append(2)",
        "seen[:] = [3]",
        "def f():\n    return math.pi",
        "def test(x):\n    assert x == f() and seen",
        "check_exercise('1', None, test)",
        "print(unseen)",
    ]
    assert list(check_exercises.needed_by_checks(dict(enumerate(cells)))) == [0, 1, 4, 5, 6, 7]


def write(path: Path, *codes: str) -> Path:
    "A notebook of code cells."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "cells": [
                    {
                        "cell_type": "code",
                        "metadata": {},
                        "source": code,
                        "outputs": [],
                        "execution_count": None,
                    }
                    for code in codes
                ]
            }
        )
    )
    return path


START = "from slot_attention_nbdev.core import check_exercise"
CHECK = "def test(f):\n    assert f(2) == 4, 'twice'\ncheck_exercise('9.1', {}, test)"


@pytest.mark.parametrize(
    "check, solution, complaint",
    [
        (CHECK, "lambda x: 2 * x", "1 exercises"),
        (CHECK.replace("f(2) == 4", "True"), "lambda x: 2 * x", "accepts None"),
        (
            CHECK.replace("f(2) == 4", "f(2) in (2, 4)"),
            "lambda x: 2 * x",
            "accepts a function that returns what it was given",
        ),
        (
            CHECK.replace("f(2) == 4", "f(2) is None"),
            "lambda x: None",
            "accepts a function that returns nothing",
        ),
        (CHECK.replace("f(2) == 4", "f(2) == 5"), "lambda x: 2 * x", "refuses its solution"),
    ],
)
def test_a_bad_check_is_found(tmp_path, check, solution, complaint):
    notebook = write(tmp_path / "09_bad.ipynb", START, check.format("None"))
    accepting = check.replace("f(2) == 5", "f(2) == 4")
    write(tmp_path / "solutions" / "09_bad_solutions.ipynb", START, accepting.format(solution))
    assert any(complaint in fault for fault in check_exercises.faults_of(notebook))


@pytest.mark.parametrize("solutions", by_speed(SOLUTIONS))
def test_a_worksheet_runs_and_nothing_is_answered(solutions, tmp_path):
    sheet = blank_solutions.worksheet(solutions)
    path = tmp_path / solutions.parent.name / solutions.name
    path.parent.mkdir()
    path.write_text(json.dumps(sheet))
    # what a notebook finds two folders up
    (tmp_path.parent / "tests").is_dir() or (tmp_path.parent / "tests").symlink_to(ROOT / "tests")
    answers = []
    check_exercises.run(path, lambda label, answer, test: answers.append((label, answer)))
    assert len(answers) >= 3 and all(answer is None for _, answer in answers)


@pytest.mark.parametrize("solutions", [pytest.param(p, id=p.stem) for p in SOLUTIONS])
def test_a_worksheet_asks_everything_and_gives_nothing_away(solutions):
    text = "\n".join(
        blank_solutions.source(c) for c in blank_solutions.worksheet(solutions)["cells"]
    )
    assert "*Solution" not in text and text.count("answer = None  # your answer") >= 3
    assert all(
        text.count(f"**{label} ") == 1
        for label in blank_solutions.questions(
            solutions.parent.parent / solutions.name.replace("_solutions", "")
        )
    )


def test_blank_keeps_the_check_and_what_it_needs():
    code = "secret = 4\n\n\ndef helper():\n    return 2\n\n\ndef solve(x):\n    return x * secret\n\n\ndef test(f):\n    assert f(1) == helper() * 2\n\n\ncheck_exercise('9.1', solve, test)\nprint(solve(2))\nprint('done')"
    blanked = blank_solutions.blank(code)
    assert "secret" not in blanked and "solve" not in blanked
    assert (
        "def helper" in blanked
        and 'check_exercise("9.1", answer, test)' in blanked
        and blanked.endswith("print('done')")
    )
