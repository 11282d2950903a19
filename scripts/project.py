"""Where the project lives: read from settings.ini, which alone says so. Needs the standard library alone."""

from configparser import ConfigParser
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent


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
