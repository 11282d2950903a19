#!/usr/bin/env python3
"""Execute notebooks and save their outputs in place.

    python scripts/execute_notebooks.py                      # all, as `make notebooks` does
    python scripts/execute_notebooks.py nbs/course/01_attention.ipynb
    python scripts/execute_notebooks.py --slow nbs/speed/*.ipynb  # cells marked `#| slow` too

Cells marked slow, gpu or notest keep the outputs they have. A notebook that fails is left as it
was. Live figures are saved as the picture that stands in for them: a saved notebook has no kernel
that could move them. Pictures are drawn at twice the pixels, and packed in 256 colors.
"""

import argparse
import base64
import io
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import PIL.Image
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from slot_attention_nbdev.core import atomic_write

sys.path.insert(0, str(Path(__file__).resolve().parent))
from project import all_notebooks


def skipped(source: str, flags: set[str]) -> bool:
    "Whether a cell bears a flag that keeps it from running."
    return bool(set(re.findall(r"^#\|\s*(slow|gpu|notest)\b", source, re.M)) & flags)


def without_widgets(cell: dict) -> None:
    "Drop from a cell's outputs what only a running kernel can show."
    for output in cell.get("outputs", []):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def packed(png: bytes) -> bytes:
    "A PNG in at most 256 colors, where that makes it smaller."
    image = PIL.Image.open(io.BytesIO(png)).convert("RGBA")
    paper = PIL.Image.new("RGBA", image.size, "white")
    image = PIL.Image.alpha_composite(paper, image).convert("RGB")
    buffer = io.BytesIO()
    # colors that few pixels have keep their places; then each is the mean of those it stands for
    rare_too, plain = PIL.Image.Quantize.MAXCOVERAGE, PIL.Image.Dither.NONE
    image = image.quantize(256, method=rare_too, kmeans=1, dither=plain)
    image.save(buffer, format="png", optimize=True)
    return min(png, buffer.getvalue(), key=len)


def prepare_pictures(cell: dict) -> None:
    """Pack a cell's pictures, and write down how wide each is shown.

    A figure of matplotlib says it: half its pixels. Of others 1.5 pixels go to one of the page.
    """
    for output in cell.get("outputs", []):
        for kind in {"image/png", "image/jpeg"} & output.get("data", {}).keys():
            data = base64.b64decode(output["data"][kind])
            if kind == "image/png":
                data = packed(data)
                output["data"][kind] = base64.b64encode(data).decode()
            width, height = PIL.Image.open(io.BytesIO(data)).size
            shown = output["metadata"].setdefault(kind, {})
            shown.setdefault("width", int(width / 1.5))
            shown.setdefault("height", round(height * shown["width"] / width))


def execute(path: Path, flags: set[str]) -> float:
    "Run one notebook in its own folder and save it; returns the seconds it took."
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        coalesce_streams=True,  # what a cell prints stays one piece, also on a slow machine
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--InlineBackend.figure_format=retina"],
    )
    start = time.time()
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code" and not skipped(cell.source, flags):
                client.execute_cell(cell, index)
                without_widgets(cell)
            prepare_pictures(cell)
    notebook.metadata.pop("widgets", None)
    with atomic_write(path) as temporary:
        nbformat.write(notebook, temporary)
    return time.time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--slow", action="store_true", help="run the cells marked slow as well")
    parser.add_argument("--gpu", action="store_true", help="run the cells marked gpu as well")
    arguments = parser.parse_args()
    flags = {
        "notest",
        *(["slow"] if not arguments.slow else []),
        *(["gpu"] if not arguments.gpu else []),
    }
    paths = arguments.notebooks or all_notebooks()
    os.environ.pop(
        "MPLBACKEND", None
    )  # with another backend than the notebook's, no figure is kept
    failed = 0
    for path in paths:
        try:
            print(f"{path.name}: {execute(path.resolve(), flags):.1f} s", flush=True)
        except CellExecutionError as error:
            failed += 1
            print(f"{path.name}: FAILED\n{error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
