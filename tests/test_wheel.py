"The notebooks away from the repository: from the wheel in a fresh environment, and with the cell that Colab and Binder need."

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import install_cells  # noqa: E402
import project  # noqa: E402


@pytest.mark.slow
def test_notebooks_run_from_the_wheel():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_wheel.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        done.stdout.count("runs from the wheel, unchanged") == 3
        and "by its own cell" in done.stdout
    )


def test_each_notebook_gets_one_pinned_install_cell_and_nothing_else_changes(tmp_path):
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "install_cells.py", "--out", tmp_path],
        check=True,
        capture_output=True,
    )
    for path in (ROOT / "nbs").rglob("[0-9]*.ipynb"):
        before = json.loads(path.read_text())
        after = json.loads((tmp_path / path.relative_to(ROOT)).read_text())
        (added,) = [c for c in after["cells"] if c not in before["cells"]]
        assert (
            f"=={project.version()}" in added["source"]
            and len(after["cells"]) == len(before["cells"]) + 1
        )


def test_a_published_notebook_has_badges_and_fetches_its_files(monkeypatch):
    monkeypatch.setitem(project.settings(), "published", "True")
    cells = install_cells.ready(ROOT / "nbs" / "library/14_original.ipynb")["cells"]
    assert "colab" in cells[1]["source"] and "git clone" in cells[2]["source"]
    assert (
        "git clone"
        not in install_cells.ready(ROOT / "nbs" / "course/01_attention.ipynb")["cells"][2]["source"]
    )
