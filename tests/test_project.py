"The project holds together: modules match notebooks, imports point upwards, the wheel needs torch alone."

import ast
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "slot_attention_nbdev"
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("[a-z]*/[0-9]*.ipynb"))


def sources(notebook: Path) -> list[str]:
    "The code cells of a notebook."
    return [
        "".join(c["source"])
        for c in json.loads(notebook.read_text())["cells"]
        if c["cell_type"] == "code"
    ]


def module_of(notebook: Path) -> str | None:
    "The module a notebook exports."
    found = re.search(r"#\|\s*default_exp\s+(\S+)", "\n".join(sources(notebook)))
    return found[1] if found else None


def python_files(folder: Path) -> dict[str, Path]:
    "Generated modules by their relative name."
    return {str(p.relative_to(folder)): p for p in folder.rglob("*.py") if p.name != "_modidx.py"}


def test_modules_are_what_the_notebooks_export(tmp_path):
    for name in ("settings.ini", "setup.py", "README.md", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "nbs",
        tmp_path / "nbs",
        symlinks=True,
        ignore=shutil.ignore_patterns("runs", ".ipynb_checkpoints"),
    )
    shutil.copytree(
        ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__")
    )
    before = tmp_path / "before"
    shutil.copytree(tmp_path / PACKAGE, before)
    subprocess.run(
        [Path(sys.executable).with_name("nbdev_export")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    old, new = python_files(before), python_files(tmp_path / PACKAGE)
    assert old.keys() == new.keys()
    assert [name for name in old if not filecmp.cmp(old[name], new[name], shallow=False)] == []


def test_readme_is_what_the_index_makes():
    subprocess.run([sys.executable, ROOT / "scripts" / "make_readme.py", "--check"], check=True)


def test_the_citation_names_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    version = re.search(r"^version = (.*)$", (ROOT / "settings.ini").read_text(), re.M)[1]
    assert f"\nversion: {version}\n" in citation and "2006.15055" in citation


def test_imports_point_upwards():
    number = {module_of(n): int(n.name.split("_")[0]) for n in NOTEBOOKS if module_of(n)}
    for notebook in NOTEBOOKS:
        module = module_of(notebook)
        exported = [s for s in sources(notebook) if re.search(r"^#\|\s*export", s, re.M)]
        for node in (
            n for s in exported for n in ast.walk(ast.parse(s)) if isinstance(n, ast.ImportFrom)
        ):
            if (node.module or "").startswith(PACKAGE + "."):
                other = node.module.removeprefix(PACKAGE + ".")
                assert number[other] < number[module], (
                    f"{notebook.name} imports {other}, which comes later"
                )


def test_every_notebook_is_in_the_sidebar():
    text = (ROOT / "_quarto.yml").read_text()
    assert [n.name for n in (ROOT / "nbs").glob("*.ipynb") if n.name not in text] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The built wheel, unpacked."
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    shutil.copytree(
        ROOT,
        copy,
        symlinks=True,
        ignore=shutil.ignore_patterns(
            ".venv", ".git", "runs", "nbs", "build", "_docs", "*.egg-info", "__pycache__"
        ),
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        copy,
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    zipfile.ZipFile(path).extractall(folder / "site")
    return folder / "site"


ALLOW_TORCH_ONLY = """
import sys, importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    refused = {"numpy", "scipy", "matplotlib", "PIL", "tqdm", "tensorboard", "safetensors", "fastcore", "nbdev", "IPython", "ipywidgets", "sklearn", "pandas", "accelerate", "huggingface_hub", "psutil"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.refused: raise ModuleNotFoundError(name + " is not there")
sys.meta_path.insert(0, Refuse())
import warnings; warnings.simplefilter("ignore")
"""


def run(site: Path, code: str) -> str:
    "Run code with the unpacked wheel first on the path, away from the project."
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_needs_torch_alone(wheel):
    code = ALLOW_TORCH_ONLY + (
        "import torch, slot_attention_nbdev.nn.slot_attention as m\n"
        "assert 'site' in m.__file__, m.__file__\n"
        "print(m.SlotAttention(32)(torch.zeros(2, 49, 32)).shape)"
    )
    assert "[2, 7, 64]" in run(wheel, code)


def test_the_core_imports_fast(wheel):
    code = "import torch, time; t = time.process_time(); import slot_attention_nbdev.nn.slot_attention; print(time.process_time() - t)"
    assert min(float(run(wheel, code)) for _ in range(3)) < 0.2


def test_the_wheel_carries_weights_and_command_but_no_tests(wheel):
    assert list((wheel / PACKAGE / "weights").glob("*.safetensors"))
    assert (wheel / PACKAGE / "results" / "tetrominoes_fast" / "seed0.json").exists()
    assert "slot-attention" in next(wheel.glob("*.dist-info/entry_points.txt")).read_text()
    assert not (wheel / "tests").exists() and not (wheel / "scripts").exists()
    requires = [
        line
        for line in next(wheel.glob("*.dist-info/METADATA")).read_text().splitlines()
        if line.startswith("Requires-Dist")
    ]
    assert [line for line in requires if "extra ==" not in line] == ["Requires-Dist: torch>=2.4"]
