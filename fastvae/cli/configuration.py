"""Options from a TOML file and from the environment, behind the flags of the command line.

Precedence: flag, environment, file, default. The variable of ``fastvae train --latent-dim`` is
``FASTVAE_TRAIN_LATENT_DIM``; its key in the file is ``latent-dim``, at the top for whichever command reads the file, or
in the table ``[train]``, which goes first.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fastvae.cli.options import PATH

__all__ = ["ConfigurationError", "Origins", "configure", "key_of", "toml_line"]

_OPTION = re.compile(r"--[a-z][a-z-]*")
# Options about the file itself, which cannot be in one.
_ABOUT_FILES = frozenset({"config", "print-config"})


class ConfigurationError(click.UsageError):
    """A file or the environment sets what it cannot; the message names keys as they stand there."""


@dataclass
class Origins:
    """Where the options of the command at hand were set."""

    context: click.Context | None = None
    path: Path | None = None
    names: frozenset[str] = field(default_factory=frozenset)  # of the options that the file sets

    def of(self, option: click.Parameter) -> str:
        """Return one of flag, environment, file or default, the second and third with their name."""
        assert self.context is not None
        assert option.name is not None
        source = self.context.get_parameter_source(option.name)
        if source == ParameterSource.ENVIRONMENT:
            return f"environment, {option.envvar}"
        if source == ParameterSource.DEFAULT_MAP and option.name in self.names:
            return f"file, {self.path}"
        return "default" if source in (ParameterSource.DEFAULT, None) else "flag"

    def of_options_in(self, message: str) -> str:
        """Return what to add to a message about options that were set out of sight."""
        named = set(_OPTION.findall(message))
        notes = ""
        for option in _options(self.context.command) if self.context else ():
            kind, _, where = self.of(option).partition(", ")
            if where and named & {*option.opts, *option.secondary_opts}:
                notes += f"; --{key_of(option)} is set {'by' if kind == 'environment' else 'in'} {where}"
        return notes


def configure(root: click.Group) -> None:
    """Give every command below the root --config, and every option its environment variable."""
    for path, command in _commands(root, ()):
        for option in _options(command):
            option.envvar = _variable(path, key_of(option))
        command.params.append(_config_option(root, path))


def key_of(option: click.Option) -> str:
    """Return the name of an option in files: its first long flag without the dashes."""
    return next(flag for flag in option.opts if flag.startswith("--"))[2:]


def toml_line(key: str, value: Any, comment: str = "") -> str:
    """Return ``key = value  # comment``, commented out where the value is None."""
    comment = " ".join(comment.split())  # a path may have line breaks
    if value is None:
        return f"# {key} is not set" + (f", {comment}" if comment else "")
    return f"{key} = {_toml(value)}" + (f"  # {comment}" if comment else "")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    escaped = (
        f"\\u{ord(c):04x}" if ord(c) < 0x20 or c == "\x7f" else f"\\{c}" if c in '"\\' else c for c in str(value)
    )
    return f'"{"".join(escaped)}"'


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with options of its own, by the words that call it."""
    if path and [*_options(command)]:
        yield path, command
    for name, child in command.commands.items() if isinstance(command, click.Group) else ():
        yield from _commands(child, (*path, name))


def _options(command: click.Command) -> Iterator[click.Option]:
    return (param for param in command.params if isinstance(param, click.Option))


def _variable(path: tuple[str, ...], key: str) -> str:
    return "_".join(("FASTVAE", *path, key)).upper().replace("-", "_")


def _config_option(root: click.Group, path: tuple[str, ...]) -> click.Option:
    def read(context: click.Context, _: click.Parameter, file: Path | None) -> None:
        if context.resilient_parsing:
            return
        origins = context.ensure_object(Origins)
        origins.context = context
        if not isinstance(context.command, click.Group):
            _check_environment(context.command, path)
        if file is None:
            return
        options = {key_of(option): option for option in _options(context.command)}
        values = {
            str(options[key].name): _as_given(file, options[key], value)
            for key, value in _keys_for(root, path, file, _parse(file)).items()
        }
        origins.path, origins.names = file, frozenset(values)
        context.default_map = {**(context.default_map or {}), **values}

    first = next(_options(_at(root, path)))
    return click.Option(
        ["--config"],
        type=PATH,
        envvar=_variable(path, "config"),
        is_eager=True,
        expose_value=False,
        callback=read,
        help=f"TOML file of options, {key_of(first)} = ... for --{key_of(first)}; the environment "
        f"({first.envvar}) goes before it, and flags before both.",
    )


def _at(root: click.Group, path: Iterable[str]) -> click.Command:
    command: click.Command = root
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"cannot read --config {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"--config {file} is not a TOML file: {error}") from error


def _keys_for(root: click.Group, path: tuple[str, ...], file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file sets for a command: its top level, then the command's own table."""
    chosen: dict[str, Any] = {}
    known = _known(_at(root, path))
    for key, value in values.items():
        if isinstance(value, dict):
            continue
        others = [".".join(words) for words, command in _commands(root, ()) if key in _known(command)]
        if key not in known and others:
            raise ConfigurationError(
                f"{file}: {key!r} is no option of {' '.join(path)}; put it below [{others[0]}], whose it is"
            )
        _check_key(file, "", key, known)
        chosen[key] = value
    return chosen | _table_for(root, path, file, values, ())


def _table_for(
    group: click.Command, path: tuple[str, ...], file: Path, values: Mapping[str, Any], above: tuple[str, ...]
) -> dict[str, Any]:
    """Check the tables of a group's commands, and return the keys of the one on the path."""
    children = group.commands if isinstance(group, click.Group) else {}
    chosen: dict[str, Any] = {}
    for name, table in values.items():
        if not isinstance(table, dict):
            continue
        here = (*above, name)
        if name not in children:
            form = f"[{'.'.join((*above, '{}'))}]"
            raise ConfigurationError(f"{file}: unknown table [{'.'.join(here)}]{_nearest(name, children, form)}")
        keys = {key: value for key, value in table.items() if not isinstance(value, dict)}
        for key in keys:
            _check_key(file, f"[{'.'.join(here)}] ", key, _known(children[name]))
        below = _table_for(children[name], path, file, table, here)
        if path == here:
            chosen |= keys
        chosen |= below
    return chosen


def _known(command: click.Command) -> set[str]:
    return {key_of(option) for option in _options(command)} - _ABOUT_FILES


def _check_key(file: Path, table: str, key: str, known: set[str]) -> None:
    if key not in known:
        raise ConfigurationError(f"{file}: {table}unknown key {key!r}{_nearest(key, known)}")


def _nearest(name: str, known: Iterable[str], form: str = "{!r}") -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {form.format(near[0])}?" if near else ""


def _as_given(file: Path, option: click.Option, value: Any) -> Any:
    """Return a value as the same flag would bring it: text, so that it meets the same checks and the same messages."""
    takes_list = option.multiple or option.nargs != 1
    items = value if isinstance(value, list) else [value]
    if (
        any(isinstance(item, dict | list) for item in items)
        or not items
        or (isinstance(value, list) and not takes_list)
    ):
        raise ConfigurationError(
            f"{file}: {key_of(option)} must be {'values' if takes_list else 'one value'}, not {value}"
        )
    texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
    return texts if takes_list else texts[0]


def _check_environment(command: click.Command, path: tuple[str, ...]) -> None:
    """Refuse a variable that seems to set an option and does not."""
    known = {str(option.envvar) for option in _options(command)}
    for name in sorted(os.environ):
        if name.startswith(_variable(path, "")) and name not in known:
            raise ConfigurationError(f"the environment sets {name}, which is no option{_nearest(name, known, '{}')}")
