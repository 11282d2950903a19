"The notebook-form script passes a notebook in form and finds a planted fault of each kind."

import base64
import io
import json
import re
from pathlib import Path

import check_notebooks as checker
import execute_notebooks
import numpy as np
import pytest
from PIL import Image
from project import NBS

ABOVE = "    # How often: a comment too long to stand behind its argument stands above it\n"
EXPORT = f"""#| exports
def double(
    x: Tensor,  # Anything, [B, N]
{ABOVE}    times: int = 1,
) -> Tensor:  # Twice that, [B, N]
    "Twice the input."
    return 2**times * x"""

OPENING = "**You will learn** this. **Prerequisites:** none. **Time:** 1 minute. **Hardware:** any."
EXERCISES = "**Exercise 1 ★** One.\n\n**Exercise 2 ★★** Two.\n\n**Exercise 3 ★★★** Three."
CHECK = 'answer = None\ncheck_exercise("{}", answer, test)'
GOOD = [
    ("markdown", "# A title\n\n> and what it says"),
    ("markdown", OPENING),
    ("code", "x = torch.rand(3, generator=torch.Generator().manual_seed(0))"),
    ("code", EXPORT),
    ("code", '#| fig-alt: "a line"\nax.set_xlabel("x")'),
    ("markdown", EXERCISES),
    *(("code", CHECK.format(number)) for number in (1, 2, 3)),
]
FIGURE = 4


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


def image(size: int = 24, pixels: int = 300, **shown: int) -> list[dict]:
    "An output that holds an image of some bytes, which is shown 200 wide if nothing else is said."
    png = b"\x89PNG".ljust(16) + pixels.to_bytes(4, "big")
    data = {"image/png": base64.b64encode(png.ljust(size)).decode()}
    metadata = {"image/png": shown or {"width": 200}}
    return [{"output_type": "display_data", "metadata": metadata, "data": data}]


def stream(text: str, name: str = "stdout") -> list[dict]:
    "An output of printed text."
    return [{"output_type": "stream", "name": name, "text": text}]


def faults(folder: Path, cells=GOOD, outputs=None, solved=("1", "2", "3"), name="course/01_good"):
    "The faults of a notebook, with a solutions notebook that shows these exercises solved."
    path = write(folder / f"{name}.ipynb", cells, {FIGURE: image(), **(outputs or {})})
    if solved is not None:
        printed = stream("".join(f"Exercise {label}: solved.\n" for label in solved))
        write(checker.solutions_of(path), [("code", "print()")], {0: printed})
    return checker.check([path])


def swap(old: str, new: str):
    "The good notebook with one text replaced; the text must be there."
    assert any(old in source for _, source in GOOD)
    return [(kind, source.replace(old, new)) for kind, source in GOOD]


def add(source: str, kind: str = "code"):
    "The good notebook with one more cell at its end."
    return [*GOOD, (kind, source)]


def test_a_notebook_in_form_has_no_faults(tmp_path):
    assert faults(tmp_path) == []


PLANTED = {
    "no subtitle": ("title", swap("\n\n> and what it says", "")),
    "no prerequisites": ("opening", swap("**Prerequisites:**", "")),
    "no time": ("opening", swap("**Time:**", "")),
    "no annotation": ("docments", swap("x: Tensor,", "x,")),
    "no docment": ("docments", swap("  # Anything, [B, N]", "")),
    "no docment above": ("docments", swap(ABOVE, "")),
    "no return docment": ("docments", swap("  # Twice that, [B, N]", "")),
    "no docstring": ("docments", swap('    "Twice the input."\n', "")),
    "unseeded torch": ("seed", swap("generator=torch.Generator().manual_seed(0)", "")),
    "unseeded in place": ("seed", add("x.normal_()")),
    "global numpy": ("seed", add("np.random.rand(3)")),
    "absolute path": ("path", add('open("/home/me/x")')),
    "network": ("network", add("import urllib.request")),
    "pip": ("network", add("!pip install x")),
    "no alt text": ("alt-text", swap('#| fig-alt: "a line"\n', "")),
    "neither labels nor caption": ("caption", swap('ax.set_xlabel("x")', "plot()")),
    "two exercises only": ("exercises", swap("**Exercise 3 ★★★** Three.", "")),
    "no grades": ("exercises", swap("★", "")),
    "numbers with a gap": ("exercises", swap("Exercise 3", "Exercise 4")),
    "an exercise without a check": ("exercises", swap('check_exercise("2"', 'print("2"')),
    "a check without an exercise": ("exercises", add(CHECK.format("1.4"))),
    "broken link": ("link", add("[x](99_nowhere.ipynb)", "markdown")),
    "a file's name as a link": ("link", add("[good](01_good.ipynb)", "markdown")),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_in_a_cell(tmp_path, name):
    rule, cells = PLANTED[name]
    found = faults(tmp_path, cells)
    assert any(f" {rule}: " in fault for fault in found), found


ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}


@pytest.mark.parametrize(
    "rule, outputs",
    [
        ("output", {2: [ERROR]}),
        ("output", {2: stream("warning", "stderr")}),
        ("output", {FIGURE: []}),
        ("figure", {FIGURE: [], 2: stream("1")}),
        ("size", {FIGURE: image(301_000)}),
        ("sharp", {FIGURE: image(width=201)}),
        ("sharp", {FIGURE: image(height=200)}),
        ("size", {2: stream("x" * 1_001_000)}),
    ],
)
def test_planted_fault_in_an_output(tmp_path, rule, outputs):
    assert any(f" {rule}: " in fault for fault in faults(tmp_path, outputs=outputs))


def test_the_width_of_a_picture():
    for kind in ("png", "jpeg"):
        buffer = io.BytesIO()
        Image.new("RGB", (321, 123)).save(buffer, kind)
        assert checker.pixels_across(buffer.getvalue()) == 321


def test_a_packed_picture_is_smaller_and_looks_the_same():
    shades = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).repeat(9, 0).repeat(9, 1)
    shades[:20] = (255, 255, 255)
    shades[20, 20] = (213, 94, 0)  # of one pixel alone
    buffer = io.BytesIO()
    Image.fromarray(shades.astype("uint8")).convert("RGBA").save(buffer, "png")
    data = execute_notebooks.packed(buffer.getvalue())
    found = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert len(data) < len(buffer.getvalue())
    assert abs(found - shades).max() < 40 and abs(found - shades).mean() < 10
    assert (found[:20] == 255).all()


def test_the_executor_says_how_wide_a_picture_is_shown():
    buffer = io.BytesIO()
    Image.new("RGB", (300, 30)).save(buffer, "png")
    png = base64.b64encode(buffer.getvalue()).decode()
    outputs = [
        {"output_type": "display_data", "data": {"image/png": png}, "metadata": metadata}
        for metadata in ({}, {"image/png": {"width": 150, "height": 15}})
    ]
    execute_notebooks.prepare_pictures({"outputs": outputs})
    assert [each["metadata"]["image/png"] for each in outputs] == [
        {"width": 200, "height": 20},
        {"width": 150, "height": 15},
    ]


def test_solutions_must_exist_and_show_each_exercise_solved(tmp_path):
    assert any("1 solved" in fault for fault in faults(tmp_path / "a", solved=None))
    assert any("3 solved" in fault for fault in faults(tmp_path / "b", solved=("1", "2")))


def test_a_notebook_outside_the_course_needs_no_exercises(tmp_path):
    assert faults(tmp_path, GOOD[:5], solved=None, name="library/01_good") == []
    assert faults(tmp_path, GOOD[:5], solved=None, name="course/01_good") != []


def test_slow_notebooks_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(checker, "NBS", tmp_path)
    said = "**Time:** 9 minutes to read, {} seconds to run."
    for name, seconds in (("03_c", 5), ("04_d", 5), ("05_e", 15)):
        write(tmp_path / "course" / f"{name}.ipynb", [("markdown", said.format(seconds))])
    took = {"01_a": 21, "02_b": 20, "03_c": 11, "04_d": 10, "05_e": 21}
    timings = "".join(f"{name}.ipynb: {seconds} secs\n" for name, seconds in took.items())
    found = checker.too_slow(f"Success.\n{timings}")
    assert found == ["01_a.ipynb", "03_c.ipynb", "05_e.ipynb"]


@pytest.mark.parametrize("name", ["17_live", "18_live_scenes"])
def test_live_figures_come_before_their_machinery(name):
    cells = json.loads((NBS / "library" / f"{name}.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    figures = [i for i, s in enumerate(sources) if re.search(r"^(LivePage|explore_\w+)\(", s, re.M)]
    machinery = [i for i, s in enumerate(sources) if s.startswith("#| exports")]
    assert len(figures) >= 2 and max(figures) < min(machinery)
