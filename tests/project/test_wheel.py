"The notebooks away from the repository: from the wheel, and with the cell that Colab needs."

import json
import subprocess
import sys

import install_cells
import project
import pytest
from project import NBS, ROOT


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
    for path in project.all_notebooks():
        before = json.loads(path.read_text())
        after = json.loads((tmp_path / path.relative_to(ROOT)).read_text())
        (added,) = [c for c in after["cells"] if c not in before["cells"]]
        assert (
            f"=={project.version()}" in added["source"]
            and len(after["cells"]) == len(before["cells"]) + 1
        )


def test_a_published_notebook_has_badges_and_fetches_its_files(monkeypatch):
    monkeypatch.setitem(project.settings(), "published", "True")
    cells = install_cells.ready(NBS / "library/14_original.ipynb")["cells"]
    assert "colab" in cells[1]["source"] and "git clone" in cells[2]["source"]
    assert (
        "mkdir -p ../../tests && cp -r repository/tests/assets ../../tests/" in cells[2]["source"]
    )
    cells = install_cells.ready(NBS / "course/01_attention.ipynb")["cells"]
    assert "git clone" not in cells[2]["source"]
