#!/usr/bin/env python3
"""Run notebooks from the built wheel, in a fresh environment, away from this repository.

    python scripts/check_wheel.py                               # three notebooks of the course
    python scripts/check_wheel.py nbs/course/03_symmetry.ipynb  # others

Builds the wheel and makes a virtual environment that holds Jupyter alone. The first notebook, in
the form that Colab gets, installs the package by its own first cell, which finds the wheel. Then
every notebook is copied there and executed unchanged.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import install_cells

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ("01_attention", "02_slot_attention", "09_train_on_cpu")


def run(command: list, venv: Path, folder: Path) -> str:
    """Run a program of a fresh environment, in a folder, with nothing of this repository or of the
    present environment in reach; what it printed.
    """
    environment = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PYTHON", "JUPYTER", "IPYTHON", "VIRTUAL_ENV", "MPL"))
    }
    here = str(Path(sys.executable).parent)
    environment |= {
        "PATH": os.pathsep.join(
            [str(venv / "bin"), *[p for p in os.environ["PATH"].split(os.pathsep) if p != here]]
        ),
        "VIRTUAL_ENV": str(venv),
        "PIP_FIND_LINKS": str(venv.parent),
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **{
            f"JUPYTER_{kind}": str(venv.parent / "jupyter")
            for kind in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
        },
    }
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "notebooks",
        nargs="*",
        type=Path,
        default=[ROOT / "nbs" / "course" / f"{name}.ipynb" for name in DEFAULT],
    )
    notebooks = [path.resolve() for path in parser.parse_args().notebooks]
    with tempfile.TemporaryDirectory() as name:
        home, start = Path(name).resolve(), time.time()
        away, venv = home / "away", home / "venv"
        python = venv / "bin" / "python"
        away.mkdir()
        unwanted = shutil.ignore_patterns(
            ".venv",
            ".git",
            "build",
            "nbs",
            "runs",
            "_docs",
            "_notebooks",
            "_teaching",
            "*.egg-info",
            "__pycache__",
        )
        # nothing that an earlier build left gets into the wheel
        shutil.copytree(ROOT, home / "source", symlinks=True, ignore=unwanted)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "-w",
                home,
                home / "source",
            ],
            check=True,
            cwd=home,
        )
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        run([python, "-m", "pip", "install", "--quiet", "nbclient", "ipykernel"], venv, home)

        def execute(notebook: str) -> float:
            begun = time.time()
            run([python, "-c", EXECUTE, notebook], venv, away)
            return time.time() - begun

        first = notebooks[0]
        (away / "in_colab.ipynb").write_text(
            json.dumps(install_cells.ready(first)), encoding="utf-8"
        )
        seconds = execute("in_colab.ipynb")
        print(f"{first.name}: installs the wheel by its own cell, {seconds:.0f} s", flush=True)
        where = run(
            [python, "-c", "import slot_attention_nbdev as p; print(p.__file__)"], venv, away
        ).strip()
        if not Path(where).is_relative_to(venv):
            raise SystemExit(f"the package comes from {where}, not from the wheel")
        for path in notebooks:
            shutil.copy(path, away)
            print(
                f"{path.name}: runs from the wheel, unchanged, {execute(path.name):.0f} s",
                flush=True,
            )
        print(f"in all {time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
