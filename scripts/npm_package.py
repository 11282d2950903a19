#!/usr/bin/env python3
"""Fetch a pinned package from npm's registry, check it against its hash, and unpack it.

    python scripts/npm_package.py katex      # what the pages need to typeset maths, into nbs/katex/
    python scripts/npm_package.py minisearch # what the site's search is made with
    python scripts/npm_package.py axe-core   # the accessibility checker that the tests use

Packages lie under build/npm/ and are fetched once. `npm` only downloads: nothing of a package is
run.
"""

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = {  # name: (version, the registry's own SHA-512 of the archive)
    "katex": (
        "0.19.1",
        "jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==",
    ),
    "minisearch": (
        "7.2.0",
        "dqT2XBYUOZOiC5t2HRnwADjhNS2cecp9u+TJRiJ1Qp/f5qjkeT5APcGPjHw+bz89Ms8Jp+cG4AlE+QZ/QnDglg==",
    ),
    "axe-core": (
        "4.14.1",
        "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    ),
}


def fetch(name: str) -> Path:
    "The folder of an unpacked package."
    version, digest = PINNED[name]
    store = ROOT / "build" / "npm"
    folder = store / f"{name}-{version}"
    if folder.exists():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(
            f"npm is needed once, to fetch {name} {version}:"
            " install it (on Debian: apt-get install npm) and run this again"
        )
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store) as work:  # two processes may fetch at the same time
        packed = subprocess.run(
            [npm, "pack", "--silent", f"{name}@{version}"], cwd=work, capture_output=True, text=True
        )
        if packed.returncode:
            raise SystemExit(f"npm could not fetch {name} {version}:\n{packed.stderr}")
        archive = Path(work) / packed.stdout.split()[-1]
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != digest:
            raise SystemExit(f"{name} {version} is not what was pinned: its SHA-512 is {found}")
        shutil.unpack_archive(archive, work)  # known by its digest
        try:
            (Path(work) / "package").rename(folder)
        except OSError:
            if not folder.exists():  # the other one was quicker
                raise
    return folder


def katex(folder: Path = ROOT / "nbs" / "katex") -> Path:
    """Put what a page needs to typeset maths into a folder: script, style, and the fonts in the one
    format that every browser reads.
    """
    if (folder / PINNED["katex"][0]).exists():
        return folder
    dist = fetch("katex") / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "fonts").mkdir(parents=True)
    for name in ("katex.min.js", "contrib/auto-render.min.js"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(dist / name, folder / name)
    for font in (dist / "fonts").glob("*.woff2"):
        shutil.copy(font, folder / "fonts")
    style = (dist / "katex.min.css").read_text(encoding="utf-8")
    style = re.sub(r',\s*url\([^)]*\.(?:woff|ttf)\)\s*format\("(?:woff|truetype)"\)', "", style)
    (folder / "katex.min.css").write_text(style, encoding="utf-8")
    shutil.copy(dist.parent / "LICENSE", folder)
    (folder / PINNED["katex"][0]).touch()
    return folder


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(katex() if name == "katex" else fetch(name))
