"Exercises: checks refuse what is unsolved and accept the solution; worksheets hold no solution."

import json
import subprocess
import sys
from pathlib import Path

import blank_solutions
import check_exercises
import pytest
from project import ROOT, all_solutions, exercises_of, solutions_of

NOTEBOOKS = check_exercises.with_exercises()
SOLUTIONS = all_solutions()
FAST = ("00_notation", "01_core", "01_attention")


def is_fast(path: Path) -> bool:
    "Whether a notebook is checked in every run; the others are left to the slow one."
    return path.stem.removesuffix("_solutions") in FAST


def by_speed(paths):
    "Most notebooks are left to the slow run."
    slow = pytest.mark.slow
    return [pytest.param(p, id=p.stem, marks=[] if is_fast(p) else slow) for p in paths]


PARTS = 4
SLOW_PARTS = [pytest.param(part, marks=pytest.mark.slow) for part in range(PARTS)]


@pytest.mark.parametrize("solutions", [pytest.param(p, id=p.stem) for p in SOLUTIONS])
def test_solutions_have_the_title_of_their_lesson(solutions):
    lesson = exercises_of(solutions)
    titles = [json.loads(p.read_text())["cells"][0]["source"] for p in (solutions, lesson)]
    found, title = ("".join(lines).splitlines() for lines in titles)
    name = title[0].removeprefix("# ")
    link = f"[{name}](../../{lesson.parent.name}/{lesson.name})"
    assert found == [f"# Solutions: {name}", "", f"> The exercises of {link}, solved"]


@pytest.mark.parametrize("part", ["fast", *SLOW_PARTS])
def test_checks_refuse_the_unsolved_and_accept_the_solution(part):
    if part == "fast":
        notebooks = [path for path in NOTEBOOKS if is_fast(path)]
    else:
        notebooks = [path for path in NOTEBOOKS if not is_fast(path)][part::PARTS]
    script = ROOT / "scripts" / "check_exercises.py"
    command = [sys.executable, "-X", "faulthandler", script, *notebooks]
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


def test_names_inside_functions_and_values_that_are_replaced_need_no_cell():
    cells = [
        "x, g = 1 / 0, 1",
        "y = 1 / 0",
        "x = 2",
        "#| export\ndef solve(x):\n    return unasked",
        "unasked = 1 / 0",
        "def ask(values):\n    global g\n    g = x",
        "def test(f):\n    y = f(x)\n    assert solve(y) and [z for z in y]",
        "z = 1 / 0",
        "g += 1",
        "check_exercise('1', g, test)",
    ]
    assert list(check_exercises.needed_by_checks(dict(enumerate(cells)))) == [0, 2, 3, 5, 6, 8, 9]


def write(path: Path, *codes: str) -> Path:
    "A notebook of code cells."
    rest = {"metadata": {}, "outputs": [], "execution_count": None}
    cells = [{"cell_type": "code", "source": code, **rest} for code in codes]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells}))
    return path


START = "from slot_attention_nbdev.core import check_exercise"
CHECK = "def test(f):\n    assert f(2) == 4, 'twice'\ncheck_exercise('1', {}, test)"


@pytest.mark.parametrize(
    "check, solution, complaint",
    [
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
    notebook = write(tmp_path / "course" / "09_bad.ipynb", START, check.format("None"))
    accepting = check.replace("f(2) == 5", "f(2) == 4")
    write(solutions_of(notebook), START, accepting.format(solution))
    assert any(complaint in fault for fault in check_exercises.faults_of(notebook))


def test_an_exercise_without_a_solution_and_the_other_way_round(tmp_path):
    notebook = write(tmp_path / "course" / "09_bad.ipynb", START, CHECK.format("None"))
    solved = CHECK.replace("'1'", "'2'").format("lambda x: 2 * x")
    write(solutions_of(notebook), START, solved)
    found = check_exercises.faults_of(notebook)
    assert any("exercise 1 has no solution" in fault for fault in found)
    assert any("a solution to 2, which it does not ask" in fault for fault in found)


@pytest.mark.parametrize("solutions", by_speed(SOLUTIONS))
def test_a_worksheet_runs_and_nothing_is_answered(solutions, tmp_path):
    sheet = blank_solutions.worksheet(solutions)
    path = tmp_path / "nbs" / "solutions" / solutions.parent.name / solutions.name
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(sheet))
    for name in ("tests", "results"):  # what a notebook finds at the top of the project
        (tmp_path / name).symlink_to(ROOT / name)
    answers = []
    check_exercises.run(path, lambda label, answer, test: answers.append((label, answer)))
    assert answers and all(answer is None for _, answer in answers)


@pytest.mark.parametrize("solutions", [pytest.param(p, id=p.stem) for p in SOLUTIONS])
def test_a_worksheet_asks_everything_and_gives_nothing_away(solutions):
    cells = blank_solutions.worksheet(solutions)["cells"]
    text = "\n".join(map(blank_solutions.source, cells))
    asked = blank_solutions.questions(exercises_of(solutions))
    assert "*Solution" not in text and asked
    assert text.count("answer = None  # your answer") == len(asked)
    assert all(text.count(f"**Exercise {label} ") == 1 for label in asked)


SOLVED = """secret = 4


def helper():
    return 2


def solve(x):
    return x * secret


def test(f):
    assert f(1) == helper() * 2


check_exercise("1", solve, test)
print(solve(2))
print("done")"""


def test_blank_keeps_the_check_and_what_it_needs():
    blanked = blank_solutions.blank(SOLVED)
    assert "secret" not in blanked and "solve" not in blanked and "def helper" in blanked
    assert 'check_exercise("1", answer, test)' in blanked and blanked.endswith('print("done")')
