"The notebook-form script passes a notebook in form and finds a planted fault of each kind."

import base64
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location(
    "check_notebooks", ROOT / "scripts" / "check_notebooks.py"
)
checker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checker)

EXPORT = """#| export
def double(
    x: Tensor,  # Anything, [B, N]
) -> Tensor:  # Twice that, [B, N]
    "Twice the input."
    return 2 * x  # Eq. (1)"""

GOOD = [
    ("markdown", "# A title\n\n> and what it says"),
    (
        "markdown",
        "**You will learn** a thing.\n\n**Prerequisites:** none.\n\n**Time:** 1 minute.\n\n**Hardware:** any.",
    ),
    ("code", "#| default_exp good"),
    ("code", "import torch\nfrom torch import Tensor"),
    ("markdown", "$$y = 2x \\tag{1}$$"),
    ("code", "def double_naive(x):\n    return torch.stack([v + v for v in x])"),
    ("code", EXPORT),
    (
        "code",
        "x = torch.rand(3, generator=torch.Generator().manual_seed(0))\ntorch.testing.assert_close(double(x), double_naive(x))",
    ),
    ("code", '#| fig-alt: "a line"\nax.set_xlabel("x")'),
    ("markdown", "## What can go wrong"),
    ("code", "assert 1 != 2"),
    ("code", "assert 2 != 3"),
    ("markdown", "## Exercises\n\n**0.1 ★** One. **0.2 ★★** Two. **0.3 ★★★** Three."),
    (
        "code",
        'check_exercise("0.1", None, test)\ncheck_exercise("0.2", None, test)\ncheck_exercise("0.3", None, test)',
    ),
    ("markdown", "## Summary\n\nShort.\n\n**Next:** none. **Previous:** none."),
    ("markdown", "## References\n\n[arXiv:2006.15055](https://arxiv.org/abs/2006.15055)"),
]
SOLUTIONS = [("markdown", "# Solutions\n\n> to the exercises"), ("code", "print()")]


def write(path: Path, cells, outputs=None) -> Path:
    "A notebook of these cells; outputs maps a cell's index to its outputs."
    raw = []
    for i, (kind, source) in enumerate(cells):
        cell = {"cell_type": kind, "metadata": {}, "source": source, "id": f"c{i}"}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": (outputs or {}).get(i, [])}
        raw.append(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": raw, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def image(size: int = 10) -> list[dict]:
    "An output that holds an image of some bytes."
    return [
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {"image/png": base64.b64encode(b"x" * size).decode()},
        }
    ]


def solved(*labels: str) -> list[dict]:
    "An output that says these exercises are solved."
    return [
        {
            "output_type": "stream",
            "name": "stdout",
            "text": "".join(f"Exercise {label}: solved.\n" for label in labels),
        }
    ]


def faults(
    folder: Path, cells=GOOD, outputs=None, labels=("0.1", "0.2", "0.3"), name="10_good"
) -> list[str]:
    "The faults of a notebook that has a solutions notebook beside it."
    if labels is not None:
        write(
            folder / "nbs" / "solutions" / f"{name}_solutions.ipynb",
            SOLUTIONS,
            {1: solved(*labels)},
        )
    return checker.check(
        [write(folder / "nbs" / f"{name}.ipynb", cells, {8: image(), **(outputs or {})})]
    )


def swap(old: str, new: str):
    "The good notebook with one text replaced; the text must be there."
    assert any(old in source for _, source in GOOD)
    return [(kind, source.replace(old, new)) for kind, source in GOOD]


def drop(start: str):
    "The good notebook without the cell that starts so."
    assert any(source.startswith(start) for _, source in GOOD)
    return [cell for cell in GOOD if not cell[1].startswith(start)]


def add(source: str, kind: str = "code", at: int = 4):
    "The good notebook with one more cell."
    return GOOD[:at] + [(kind, source)] + GOOD[at:]


def test_a_notebook_in_form_has_no_faults(tmp_path):
    assert faults(tmp_path) == []


PLANTED = {
    "no subtitle": ("title", swap("\n\n> and what it says", "")),
    "no prerequisites": ("opening", swap("**Prerequisites:**", "")),
    "no time": ("opening", swap("**Time:**", "")),
    "star import": ("star-import", swap("import torch\n", "from torch import *\n")),
    "two default_exp": ("default-exp", add("#| default_exp other")),
    "import beside code": ("imports", add("import math\nmath.pi")),
    "no annotation": ("docments", swap("x: Tensor,", "x,")),
    "no docment": ("docments", swap("  # Anything, [B, N]", "")),
    "no return docment": ("docments", swap("  # Twice that, [B, N]", "")),
    "no docstring": ("docments", swap('    "Twice the input."\n', "")),
    "no test after an export": (
        "test",
        [c for c in GOOD if "assert" not in c[1] or "1 != 2" in c[1]][:7]
        + [("code", "1")] * 3
        + GOOD[8:],
    ),
    "equation without code": ("equation", swap("  # Eq. (1)", "")),
    "code without equation": ("equation", swap("\\tag{1}", "")),
    "no naive form": ("naive", swap("double_naive", "double_slowly")),
    "naive form never compared": (
        "naive",
        swap(
            "torch.testing.assert_close(double(x), double_naive(x))", "assert len(double(x)) == 3"
        ),
    ),
    "no shape comment": (
        "shape-comment",
        swap("return 2 * x  # Eq. (1)", "return (2 * x).reshape(-1)  # Eq. (1)"),
    ),
    "unseeded torch": ("seed", swap("generator=torch.Generator().manual_seed(0)", "")),
    "unseeded in place": ("seed", add("x.normal_()")),
    "global numpy": ("seed", add("np.random.rand(3)")),
    "absolute path": ("path", add('open("/home/me/x")')),
    "network": ("network", add("import urllib.request")),
    "pip": ("network", add("!pip install x")),
    "a slow cell that others need": (
        "leaf",
        [*GOOD[:4], ("code", "#| slow\nlong = 1"), ("code", "print(long)"), *GOOD[4:]],
    ),
    "too many cells": ("size", GOOD + [("markdown", "more")] * 50),
    "too many exported lines": (
        "size",
        add("#| export\n" + "\n".join(f"x{i} = {i}" for i in range(151)), at=6),
    ),
    "misleading colours": ("colour", add('plot(cmap="jet")')),
    "no alt text": ("alt-text", swap('#| fig-alt: "a line"\n', "")),
    "neither labels nor caption": ("caption", swap('ax.set_xlabel("x")', "plot()")),
    "one failure only": ("failures", drop("assert 2 != 3")),
    "failures not executed": ("failures", swap("assert 2 != 3", "#| notest\nassert 2 != 3")),
    "two exercises only": ("exercises", swap('\ncheck_exercise("0.3", None, test)', "")),
    "no grades": ("exercises", swap("★", "")),
    "no summary": ("ending", swap("## Summary", "## End")),
    "no way on": ("ending", swap("**Next:** none. **Previous:** none.", "")),
    "no references": ("ending", drop("## References")),
    "references without DOI": (
        "ending",
        drop("## References") + [("markdown", "## References\n\nA book.")],
    ),
    "broken link": ("link", add("[x](99_nowhere.ipynb)", "markdown")),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_in_a_cell(tmp_path, name):
    rule, cells = PLANTED[name]
    index = next(
        (
            i
            for i, c in enumerate(cells)
            if "fig-alt" in c[1] or "xlabel" in c[1] or c[1] == '#| fig-alt: "a line"\nplot()'
        ),
        8,
    )
    found = faults(tmp_path, cells, {8: [], index: image()})
    assert any(f" {rule}: " in fault for fault in found), found


@pytest.mark.parametrize(
    "rule, outputs",
    [
        (
            "output",
            {7: [{"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}]},
        ),
        ("output", {7: [{"output_type": "stream", "name": "stderr", "text": "warning"}]}),
        ("size", {8: image(101_000)}),
        ("size", {7: [{"output_type": "stream", "name": "stdout", "text": "x" * 301_000}]}),
    ],
)
def test_planted_fault_in_an_output(tmp_path, rule, outputs):
    assert any(f" {rule}: " in fault for fault in faults(tmp_path, outputs=outputs))


def test_solutions_must_exist_and_show_each_exercise_solved(tmp_path):
    assert any(
        "no solutions/10_good_solutions.ipynb" in fault for fault in faults(tmp_path, labels=None)
    )
    assert any("0.3 solved" in fault for fault in faults(tmp_path / "b", labels=("0.1", "0.2")))


def test_two_notebooks_cannot_export_one_module(tmp_path):
    paths = [write(tmp_path / "nbs" / f"{n}.ipynb", GOOD) for n in ("10_a", "11_b")]
    assert any("10_a.ipynb exports good too" in fault for fault in checker.check(paths))


def test_a_page_beside_the_course_needs_no_exercises_but_an_opening_and_an_end(tmp_path):
    page = [
        cell
        for cell in drop("## Exercises")
        if "check_exercise" not in cell[1]
        and "export" not in cell[1]
        and "default_exp" not in cell[1]
        and "tag{" not in cell[1]
    ]
    assert faults(tmp_path, page, {8: [], 3: []}, labels=None, name="gallery") == []
    assert any(
        " opening: " in fault
        for fault in faults(
            tmp_path,
            [c for c in page if "You will learn" not in c[1]],
            {8: []},
            labels=None,
            name="gallery",
        )
    )
    assert any(
        " default-exp: " in fault
        for fault in faults(
            tmp_path, [*page, ("code", EXPORT)], {8: []}, labels=None, name="gallery"
        )
    )


def test_slow_notebooks_are_found():
    assert checker.too_slow("Success.\n10_a.ipynb: 21 secs\n11_b.ipynb: 20 secs\n") == [
        "10_a.ipynb:0 time: 21 s, at most 20"
    ]
