"""Run the examples of a page in order, as a reader would: ``python run_page.py PAGE``, in an empty folder.

Blocks marked ``python`` share one namespace. In those marked ``console`` each line that starts with ``$ `` goes to a
shell in which `fastvae` is this interpreter's. What stands behind the comment ``<!-- not run: REASON -->`` is left out
here; `test_docs` checks its command lines against the options that there are.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^(?P<skip><!-- not run: .+? -->\n\n?)?```(?P<kind>\w+)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass
class Block:
    """One fenced block of a page; `line` is that of its first line of code, counted from 1."""

    kind: str
    code: str
    line: int
    is_run: bool

    @property
    def commands(self) -> list[str]:
        """The command lines of a ``console`` block, continued ones in one piece."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line[2:] for line in lines if line.startswith("$ ")] if self.kind == "console" else []


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page that name their language."""
    text = page.read_text()
    return [
        Block(found["kind"], found["code"], text.count("\n", 0, found.start("code")) + 1, found["skip"] is None)
        for found in _FENCE.finditer(text)
    ]


def main(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks(page):
        if not block.is_run:
            continue
        if block.kind == "python":
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), namespace)
        for command in block.commands:
            print(f"{page.name}:{block.line}: $ {command}", flush=True)
            subprocess.run(["bash", "-ec", command], env=os.environ | {"PATH": path}, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
