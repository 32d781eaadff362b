"""Running the command line in tests: its result, and what an error must look like."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

COMMAND = [sys.executable, "-P", "-c", "from fastvae.cli import main; main()"]
QUICK = ("--hidden", "16", "--latent-dim", "2", "--epochs", "2")


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        values = json.loads(self.out)
        assert self.out.count("\n") == 1
        assert isinstance(values, dict)
        return values


def assert_error(result: Result, code: int, text: str) -> None:
    assert result.code == code, result
    assert result.out == ""
    last = result.err.splitlines()[-1]
    assert last.startswith("fastvae: error: ")
    assert text in last
    assert result.err.count("fastvae: error:") == 1
    assert "Traceback" not in result.err
