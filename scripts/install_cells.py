#!/usr/bin/env python3
"""Write the notebooks for Colab and Binder: with a cell that installs this version of the package.

    python scripts/install_cells.py                 # into _notebooks/; what `make teaching` runs
    python scripts/install_cells.py --out FOLDER

Where settings.ini says that the project is published, each notebook also gets its badges, and those
that read the repository's test files fetch them. Push the folder as the branch that settings.ini
names `notebooks_branch`: the badges and the site's links lead there.
Needs the standard library alone.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parent))
import project
from project import NBS, ROOT


def source(cell: dict) -> str:
    "A cell's text."
    return "".join(cell["source"])


def requirement() -> str:
    "What pip installs for a notebook."
    return f"{project.settings()['lib_name'].replace('_', '-')}[notebooks]=={project.version()}"


def install_cell(notebook: dict) -> dict:
    "The cell that readies a fresh machine for a notebook."
    lines = [
        "# For Colab and Binder: the package, at the version this notebook was made for.",
        f'%pip install --quiet "{requirement()}"',
    ]
    assets = re.search(r"((?:\.\./)+)tests/assets", "".join(map(source, notebook["cells"])))
    if project.published() and assets:
        clone = f"git clone --quiet --depth 1 --branch v{project.version()}"
        copy = f"mkdir -p {assets[1]}tests && cp -r repository/tests/assets {assets[1]}tests/"
        lines.append(f"!{clone} {project.settings()['git_url']} repository && {copy}")
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "install",
        "metadata": {},
        "outputs": [],
        "source": "\n".join(lines),
    }


def badges(name: PurePosixPath) -> list[dict]:
    "A cell with links that open the notebook elsewhere; none while the project has no address."
    links = project.notebook_links(name)
    if not links:
        return []
    text = " · ".join(f"[{label}]({url})" for label, url in links.items())
    return [{"cell_type": "markdown", "id": "badges", "metadata": {}, "source": text}]


def ready(path: Path) -> dict:
    "A notebook with its install cell, after title and opening."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    name = PurePosixPath(path.relative_to(NBS))
    notebook["cells"][1:1] = [*badges(name), install_cell(notebook)]
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_notebooks")
    out = parser.parse_args().out
    paths = project.all_notebooks()
    shutil.rmtree(out, ignore_errors=True)
    for path in paths:
        target = out / "nbs" / path.relative_to(NBS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            json.dumps(ready(path), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    shutil.copytree(NBS / "images", out / "nbs" / "images")
    # what Binder installs before it starts
    (out / "requirements.txt").write_text(requirement() + "\n", encoding="utf-8")
    print(f"{len(paths)} notebooks in {out}, each installing {requirement()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
