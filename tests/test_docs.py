"""The documentation: every example runs, every command line exists, every link leads somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest
from run_page import Block, blocks

from fastvae import errors
from fastvae.cli.commands import cli

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
RUN = [page for page in PAGES if any(b.is_run and (b.kind == "python" or b.commands) for b in blocks(page))]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_examples_run(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    code = "\n".join(block.code for block in blocks(page) if block.is_run)
    environment = os.environ | {"MPLBACKEND": "Agg"}
    if "import torch" in code:
        pytest.importorskip("torch", reason="the page's example uses PyTorch, which is not installed")
    if re.search("mnist|freyface", code):
        environment["FASTVAE_DATA"] = str(request.getfixturevalue("data_root"))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", str(Path(__file__).with_name("run_page.py")), str(page)],
        cwd=tmp_path,
        env=environment,
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pages
def test_command_lines_that_are_only_shown_exist(page: Path) -> None:
    """Commands and options are looked up, values parsed, nothing is run."""
    for block in blocks(page):
        for line in block.commands if not block.is_run else ():
            _parse(line, block)


def _parse(line: str, block: Block) -> None:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        del words[0]
    if words[:1] != ["fastvae"]:
        return
    words = words[1 : next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";")), None)]
    command: click.Command = cli
    context = click.Context(cli, info_name="fastvae")
    try:
        while isinstance(command, click.Group) and (words[:1] or [""])[0] in command.commands:
            name, *words = words
            command = command.commands[name]
            context = click.Context(command, info_name=name, parent=context)
        if not {"--help", "-h", "--version"} & {*words}:
            command.make_context(context.info_name, words)
    except click.UsageError as error:
        pytest.fail(f"line {block.line}: {line}: {error.format_message()}")


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(linked), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_reference_has_every_error() -> None:
    text = (REPOSITORY / "docs" / "api" / "vae.md").read_text()
    listed = re.findall(r"members: \[(Fastvae[^]]*)\]", text)[0].split(", ")
    assert sorted(listed) == sorted(name for name in errors.__all__ if name != "one_line")


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'fastvae[docs]'")
    if not (Path(sysconfig.get_path("platlib")) / "fastvae" / "kernels" / "__init__.py").exists():
        pytest.skip("the reference is read off the installed package, which is not here: an editable install")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "api" / "vae" / "index.html").read_text()
    assert "fastvae.VAE.fit" in reference
    assert 'src="http' not in reference  # nor does a page ask another host for anything
    assert "fastvae evaluate" in (tmp_path / "cli" / "index.html").read_text()
