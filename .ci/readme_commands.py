"""Print the README's commands of one kind: `python3 .ci/readme_commands.py setup|run|test`.

They are the lines of the code fences that open with "```bash KIND"; GitHub shows only the `bash`. `.ci/run`
runs them and `tests/test_readme.py` checks them, so that neither has a copy. Standard library only: it runs
before anything is installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def fences(kind: str, text: str) -> list[str]:
    """The contents of all code fences whose first line is "```" and `kind`, in order."""
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(kind: str) -> list[str]:
    """The commands of the fence "```bash KIND", one an item; lines that end in a backslash are joined."""
    found = fences(f"bash {kind}", README.read_text(encoding="utf-8"))
    if len(found) != 1:
        raise SystemExit(f"{README.name}: {len(found)} code fences '```bash {kind}', expected 1")
    return [line for line in found[0].replace("\\\n", " ").splitlines() if line.strip()]


if __name__ == "__main__":
    print("\n".join(commands(sys.argv[1])))
