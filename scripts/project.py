"""Where things are: the notebooks in the order of the sidebar, and the project's address.

The address stands in settings.ini alone. Needs the standard library alone.
"""

import json
import re
from configparser import ConfigParser
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
SKIPPED = {"runs", ".ipynb_checkpoints"}


def all_notebooks() -> list[Path]:
    "Every notebook of the project, solutions too."
    return [p for p in sorted(NBS.rglob("*.ipynb")) if not SKIPPED & set(p.parts)]


def lessons() -> list[Path]:
    "The numbered notebooks, which may have exercises."
    return [p for p in all_notebooks() if p.name[0].isdigit() and "solutions" not in p.parts]


def all_solutions() -> list[Path]:
    "The notebooks with solutions."
    return [p for p in all_notebooks() if "solutions" in p.parts]


def solutions_of(notebook: Path) -> Path:
    "The notebook with the solutions to another's exercises."
    folder = notebook.parent.parent / "solutions" / notebook.parent.name
    return folder / f"{notebook.stem}_solutions.ipynb"


def exercises_of(solutions: Path) -> Path:
    "The notebook whose exercises another one solves."
    folder = solutions.parent.parent.parent / solutions.parent.name
    return folder / f"{solutions.stem.removesuffix('_solutions')}.ipynb"


def reading_order(quarto: str | None = None) -> list[str]:
    "The numbered notebooks in the sidebar's order, such as `course/01_attention.ipynb`."
    quarto = quarto or (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    return re.findall(r"^ *- (\w+/\d\d_\w+\.ipynb)", quarto[quarto.index("sidebar:") :], re.M)


@cache
def title_of(notebook: Path) -> str:
    "A notebook's title."
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"]
    return "".join(first).split("\n")[0].removeprefix("# ")


def with_titles(text: str, notebook: Path) -> str:
    "Links whose text is a notebook's file name, with its title instead."

    def renamed(found: re.Match) -> str:
        there = (notebook.parent / found[2]).resolve()
        same = re.sub(r"^\d\d_", "", there.stem) == found[1] and there.exists()
        return f"[{title_of(there)}]({found[2]}" if same else found[0]

    return re.sub(r"\[(\w+)\]\(([\w./]+\.ipynb)", renamed, text)


@cache
def settings() -> dict[str, str]:
    "The values of settings.ini."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def published() -> bool:
    "Whether the project has a public address, so that links to it lead somewhere."
    return settings()["published"] == "True"


def version() -> str:
    "The package's version."
    return settings()["version"]


def source_url(path: Path | PurePosixPath) -> str:
    "A file in the repository, seen in a browser."
    return f"{settings()['git_url']}/blob/{settings()['branch']}/{path}"


def base_url() -> str:
    "The path under which the documentation is served."
    return settings()["doc_baseurl"].rstrip("/") + "/"


def site_url() -> str:
    "The documentation's full address."
    return settings()["doc_host"].rstrip("/") + base_url()


def notebook_links(notebook: PurePosixPath) -> dict[str, str]:
    """Where a notebook, named relative to nbs/, can be read, run and copied.

    Nothing while the project has no public address.
    """
    if not published():
        return {}
    where = settings()["git_url"].removeprefix("https://github.com/")
    branch = settings()["notebooks_branch"]
    return {
        "Open in Colab": f"https://colab.research.google.com/github/{where}/blob/{branch}/nbs/{notebook}",
        "Open in Binder": f"https://mybinder.org/v2/gh/{where}/{branch}?labpath=nbs/{notebook}",
        "Notebook": source_url(PurePosixPath("nbs") / notebook),
    }
