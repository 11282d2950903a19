#!/usr/bin/env python3
"""Write README.md from nbs/index.ipynb: its text, its code and what the code printed."""

import json
import re
import sys
from pathlib import Path

import project

ROOT = Path(__file__).resolve().parent.parent
HEAD = "<!-- Made from nbs/index.ipynb by scripts/make_readme.py; change it there. -->\n\n"


def absolute(link: re.Match) -> str:
    "A link of the project as an address, since PyPI shows README.md away from the files."
    text, target = link.groups()
    if re.match(r"\w+:|#", target):
        return link[0]
    address = project.source_url(target)
    return f"{text}({address.replace('/blob/', '/raw/') if text[0] == '!' else address})"


def readme() -> str:
    """The text of README.md; links point from the top of the project instead of from nbs/.

    Once the project is published they are addresses.
    """
    parts = []
    index = project.NBS / "index.ipynb"
    for cell in json.loads(index.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = re.sub(r"\]\((?!https?:|#|\.\./)([^)]+)\)", r"](nbs/\1)", source)
            source = source.replace("](../", "](")
            if project.published():
                clone = f"git clone {project.settings()['git_url']}\n"
                source = re.sub(r"^cd slot_attention_nbdev$", rf"{clone}\g<0>", source, flags=re.M)
                source = re.sub(r"(!?\[[^\]]*\])\(([^)]+)\)", absolute, source)
            parts.append(source)
            continue
        code = "\n".join(line for line in source.split("\n") if not line.startswith("#|"))
        printed = "".join(
            "".join(o.get("text", "")) for o in cell["outputs"] if o["output_type"] == "stream"
        )
        if "#| echo: false" not in source:
            parts.append(f"```python\n{code.strip()}\n```")
        if printed.strip():
            parts.append(f"```\n{printed.strip()}\n```")
    return HEAD + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            0
            if (ROOT / "README.md").read_text(encoding="utf-8") == readme()
            else "README.md is not what nbs/index.ipynb makes: run `make export`"
        )
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
