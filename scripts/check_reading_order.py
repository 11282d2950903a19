#!/usr/bin/env python3
"""Check that nothing in the course is used before it is introduced.

    python scripts/check_reading_order.py

The symbols and the words stand in two tables of nbs/course/00_notation.ipynb, each with the
notebook that introduces it; the order of reading is the sidebar's.

1. The notebook that is said to introduce a word or a symbol uses it.
2. A notebook that comes earlier and uses it anyway links, in that cell or before it, to the
   notebook that introduces it or to the table.
3. A letter in a displayed formula that is in no table is defined by the formula itself (it stands
   left of an equals sign), or stands in the text up to the next cell, as a name in the code that
   follows, or in an earlier notebook.

Prints a line per fault and exits 1 if there is any. Needs the standard library alone.
"""

import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from project import NBS, reading_order

NOTATION = "course/00_notation.ipynb"
# what TeX writes with a backslash and is no symbol, and names of functions
NO_SYMBOLS = set(
    re.findall(
        r"\w+",
        """
    frac tfrac dfrac sqrt sum prod min max exp log sin cos tan arg text mathrm mathbb mathbf
    mathcal operatorname left right big Big bigl bigr qquad quad cdot cdots ldots dots times top
    in le ge leq geq ne neq approx to mapsto infty partial nabla begin end tag label lVert rVert
    lvert rvert langle rangle lfloor rfloor lceil rceil hat bar tilde vec dot ddot underbrace
    overbrace underset overset odot oplus otimes cup cap setminus subset forall exists mid sim
    propto pm mp circ star ast prime bmod pmod cases aligned pmatrix array rightarrow leftarrow
    Rightarrow iff implies equiv ll gg int not limits displaystyle textstyle small phantom
    hspace mathop det stackrel middle xrightarrow tanh e arccos arcsin arctan sup inf lim
        """,
    )
)


def all_cells(path: Path) -> list[dict]:
    "The cells of a notebook."
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def text_cells(path: Path) -> list[str]:
    "The text of a notebook."
    return ["".join(c["source"]) for c in all_cells(path) if c["cell_type"] == "markdown"]


def table(cells: list[str], heading: str) -> list[list[str]]:
    "The rows of the table under a heading."
    text = next(c[c.index(heading) :] for c in cells if heading in c)
    rows = re.findall(
        r"^\|(.*)\|\s*$", text.split("\n## ")[0] if text.startswith("##") else text, re.M
    )
    return [[part.strip() for part in row.split("|")] for row in rows[2:]]


def prose(cell: str) -> str:
    "A cell's words: no code, no formulas, no targets of links."
    cell = re.sub(r"```.*?```|\$\$.*?\$\$|`[^`]*`|(?<!\\)\$[^$\n]*\$", " ", cell, flags=re.S)
    return re.sub(r"\]\([^)]*\)", "]", cell)


def formulas(cell: str, display: bool) -> list[str]:
    "The displayed formulas of a cell, or those in its lines."
    cell = re.sub(r"```.*?```|`[^`]*`", " ", cell, flags=re.S)
    shown = re.findall(r"\$\$(.*?)\$\$", cell, re.S)
    return (
        shown
        if display
        else re.findall(r"(?<![\\$])\$([^$\n]+)\$", re.sub(r"\$\$.*?\$\$", " ", cell, flags=re.S))
    )


def letters(formula: str) -> set[str]:
    "The symbols of a formula: single letters and Greek ones."
    formula = re.sub(
        r"\\(?:text|mathrm|operatorname|tag|begin|end|mathbb|label|textbf|textit)\*?\s*(?:\{[^{}]*\}|\w)",
        " ",
        formula,
    )
    commands = {name for name in re.findall(r"\\([a-zA-Z]+)", formula)} - NO_SYMBOLS
    plain = re.findall(r"(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])", re.sub(r"\\[a-zA-Z]+", " ", formula))
    return {f"\\{name}" for name in commands} | set(plain) - {"e"}


def defined(formula: str) -> set[str]:
    "The symbols that a formula defines: what stands left of an equals sign."
    parts = re.split(r"\\q?quad|\\\\|[,;]\s", formula)
    return {symbol for part in parts for left in part.split("=")[:-1] for symbol in letters(left)}


def named(cell: dict) -> set[str]:
    "The letters that name something in a cell: in its formulas, in its prose and its code."
    text = "".join(cell["source"])
    if cell["cell_type"] == "code":
        return set(re.findall(r"\b([a-zA-Z])(?:_\w+)?\b", text))
    inline = {s for f in formulas(text, False) for s in letters(f)}
    own = {s for f in formulas(text, True) for s in defined(f)}
    return (
        inline
        | own
        | set(re.findall(r"`(\w)`", text))
        | set(re.findall(r"(?<![\w'’])([b-zA-Z])(?![\w'’])", prose(text)))
    )


def uses_word(word: str, cell: str) -> bool:
    "Whether a cell's prose uses a word or its plural."
    return bool(
        re.search(
            rf"(?<![\w-]){re.escape(word)}(?:s|es)?(?![\w-])",
            prose(cell),
            re.I if word.islower() else 0,
        )
    )


class Entry:
    "A row of the tables: a symbol or a word, and the notebook that introduces it."

    def __init__(self, row: list[str], anchor: str):
        self.what, self.anchor = row[0], anchor
        link = re.search(r"\]\(([\w/.]+\.ipynb)\)", row[-1])
        if link is None:
            raise SystemExit(f"{NOTATION}: {self.what}: the last column must link to a notebook")
        self.home = target(link[1], NOTATION)
        self.symbols, self.codes = set(), set()
        if anchor == "the-symbols":
            self.symbols = symbols_of(row[0])
            self.codes = set(re.findall(r"`([^`]+)`", row[1]))

    def used(self, cell: str) -> bool:
        "Whether a cell uses it."
        if not self.symbols:
            return uses_word(self.what, cell)
        shown = [f for display in (True, False) for f in formulas(cell, display)]
        found = {s for f in shown for s in letters(f)}
        return bool(self.symbols & found) or any(
            "_" in s and s in f for s in self.symbols for f in shown
        )


def symbols_of(written: str) -> set[str]:
    "The symbols that a row's first column shows."
    shown = re.findall(r"\$([^$]+)\$", written)
    if any("_" in part for part in shown):
        return set(shown)
    found = {name for part in shown for name in letters(part)}
    return found or {part.strip() for part in written.split(",") if len(part.strip()) == 1}


def target(link: str, notebook: str) -> str:
    "Where a link in a notebook leads, seen from nbs/."
    return os.path.normpath(os.path.join(os.path.dirname(notebook), link))


def linked(text: str, notebook: str) -> set[str]:
    "The notebooks that a text links to, the tables of the notation with their anchor."
    links = re.findall(r"\]\(([^)#\s]+\.ipynb)(#the-)?", text)
    return {target(link, notebook) + anchor for link, anchor in links}


def unintroduced(listed: list[Entry], folder: Path, names: list[str]) -> list[str]:
    "Words and symbols that are used before they are introduced, or never."
    faults = []
    cells = {name: text_cells(folder / name) for name in names}
    for entry in listed:
        if entry.home not in names:
            faults.append(f"{NOTATION}: {entry.what}: {entry.home} is not in the sidebar")
            continue
        whole = "\n".join("".join(c["source"]) for c in all_cells(folder / entry.home))
        in_text = any(entry.used(cell) or entry.what in cell for cell in cells[entry.home])
        if not in_text and not any(re.search(rf"\b{code}\b", whole) for code in entry.codes):
            faults.append(f"{entry.home}: is said to introduce {entry.what}, and does not use it")
        for name in names[: names.index(entry.home)]:
            first = next((i for i, cell in enumerate(cells[name]) if entry.used(cell)), None)
            if name == NOTATION or first is None:
                continue
            before = linked("\n".join(cells[name][: first + 1]), name)
            if not before & {entry.home, f"{NOTATION}#the-"}:
                faults.append(
                    f"{name}: uses {entry.what}, which {entry.home} introduces;"
                    f" link to it, or to {NOTATION}#{entry.anchor}"
                )
    return faults


def unexplained(tabled: set[str], folder: Path, names: list[str]) -> list[str]:
    "Symbols of displayed formulas that nothing explains."
    faults, known = [], set()
    for name in names:
        said, whole = known | tabled, all_cells(folder / name)
        for index, cell in enumerate(whole):
            text = "".join(cell["source"])
            said |= {letter for near in whole[: index + 3] for letter in named(near)}
            if cell["cell_type"] != "markdown":
                continue
            for symbol in sorted({s for f in formulas(text, True) for s in letters(f)} - said):
                faults.append(
                    f"{name}: a formula uses {symbol} and nothing says what it is: {text[:60]!r}"
                )
                said.add(symbol)
        known |= said
    return faults


def check(folder: Path, names: list[str]) -> list[str]:
    "All faults of a course, a line each."
    notation = text_cells(folder / NOTATION)
    listed = [
        Entry(row, anchor)
        for heading, anchor in (("## The symbols", "the-symbols"), ("## The words", "the-words"))
        for row in table(notation, heading)
    ]
    tabled = {symbol for entry in listed for symbol in entry.symbols} | {"i", "j", "l", "t"}
    return unintroduced(listed, folder, names) + unexplained(tabled, folder, names)


def main() -> int:
    names = reading_order()
    faults = check(NBS, names)
    print("\n".join(faults) if faults else f"{len(names)} notebooks introduce what they use.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
