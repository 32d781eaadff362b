"""The public API describes itself: complete annotations, and docstrings that name the real parameters."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

MODULES = (
    "fastvae",
    *(f"fastvae.{name}" for name in ("backends", "callbacks", "checkpoint", "data", "errors", "evaluation")),
    *(f"fastvae.{name}" for name in ("interop", "network", "optimizer", "report", "rng", "uses")),
)
# So few may be told in the summary.
MAX_PARAMETERS_WITHOUT_SECTION = 2


def public() -> Iterator[Any]:
    """Every class and function of the public modules, and the classes' public methods."""
    for module in map(import_module, MODULES):
        for name in module.__all__:
            member = getattr(module, name)
            if inspect.isclass(member) and not issubclass(member, enum.Enum):
                yield pytest.param(member, id=f"{module.__name__}.{name}")
                for method, function in vars(member).items():
                    function = getattr(function, "__func__", function)
                    is_own = not any(method in vars(base) for base in member.__mro__[1:])  # else described there
                    if is_own and not method.startswith("_") and inspect.isfunction(function):
                        yield pytest.param(function, id=f"{module.__name__}.{name}.{method}")
            elif inspect.isfunction(member):
                yield pytest.param(member, id=f"{module.__name__}.{name}")


def parameters(member: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters without the receiver; functions of `fastvae.uses` are methods whose receiver is a model."""
    if inspect.isclass(member) and issubclass(member, Exception):
        return []
    found = [*inspect.signature(member).parameters.values()]
    if found and (found[0].name in ("self", "cls") or found[0].annotation == "Model"):
        del found[0]
    return found


def documented(member: Any) -> set[str] | None:
    """Return the names in the section Parameters, for a dataclass in that or Attributes; None without one."""
    sections = "Parameters|Attributes" if dataclasses.is_dataclass(member) else "Parameters"
    doc = inspect.getdoc(member) or ""
    section = re.search(rf"^(?:{sections})\n-+\n(.*?)(?=\n\n\w[\w ]*\n-+\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    if section is None:
        return None
    lines = re.findall(r"^(\S.*?)(?: :.*)?$", section[1], re.MULTILINE)
    return {name.strip().lstrip("*") for line in lines for name in line.split(",")}


def inherited(member: Any) -> set[str]:
    """Return the fields that a dataclass has from another, whose docstring describes them."""
    bases = (base for base in member.__mro__[1:] if dataclasses.is_dataclass(base)) if inspect.isclass(member) else ()
    return {field.name for base in bases for field in dataclasses.fields(base)}


def test_what_is_public_is_found() -> None:
    ids = [str(parameter.id) for parameter in public()]
    assert {"fastvae.VAE", "fastvae.VAE.fit", "fastvae.data.load", "fastvae.uses.denoise"} <= set(ids)


@pytest.mark.parametrize("member", [*public()])
def test_annotations_are_complete(member: Any) -> None:
    missing = [p.name for p in parameters(member) if p.annotation is p.empty]
    assert not missing, f"{missing} have no annotation"
    if inspect.isfunction(member):
        assert inspect.signature(member).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("member", [*public()])
def test_docstring_names_the_real_parameters(member: Any) -> None:
    assert inspect.getdoc(member)
    real, described = {p.name for p in parameters(member)}, documented(member)
    if described is not None:
        receiver = {"model"} - real
        assert described - inherited(member) - receiver == real - inherited(member)
    else:
        assert len(real) <= MAX_PARAMETERS_WITHOUT_SECTION, f"no section Parameters for {sorted(real)}"
