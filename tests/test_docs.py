"""What the written pages say about this repository: links, names, the module table, the tutorial.

That the Python of each page does what the page shows is tested by Sybil: see conftest.py.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import matplotlib.image
import pytest

import entropic
from tests.scripts import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("examples/service/*.md"),
]


def without_code(page: Path) -> str:
    """A page's text without its blocks of code, shown or hidden."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link may name after ``#``: the page's headings, spelled as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), flags=re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading).strip().lower() for heading in headings)
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each link within the repository leads to a file, and to a heading if it names one."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_at_most_100_characters(page: Path) -> None:
    """Except for the rows of tables, which cannot be wrapped."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


def test_every_guarantee_names_tests_that_exist() -> None:
    """``test_file.py::test_name`` in the guarantees is a test of this repository."""
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    named = re.findall(r"(test_\w+\.py)::(\w+)", page)
    assert named
    for file, name in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        defined = rf"^\s*(async )?def {name}\(|^{name} = "
        assert re.search(defined, source, flags=re.MULTILINE), f"{file}::{name}"


def test_the_module_table_is_that_of_the_import_contracts() -> None:
    """Each row allows what the contract of its module allows, and every module has a row."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts: dict[str, set[str]] = {}
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if " may import " in contract["name"]:
            imports = (line.split(" -> ") for line in contract.get("ignore_imports", ()))
            allowed = {imported.split(".")[1] for _, imported in imports}
            for module in {name.split(".")[1] for name in contract["source_modules"]}:
                contracts[module] = allowed - {module}

    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.+) \|$", page, flags=re.MULTILINE)
    above: set[str] = set()
    for module, told in rows:
        if told == "all above":
            assert contracts[module] <= above, module
        else:
            assert contracts[module] == set(told.split(", ")) - {"nothing"}, module
        above.add(module)
    modules = {path.stem for path in (ROOT / "entropic").iterdir()}
    assert above == contracts.keys() == modules - {"__init__", "__pycache__", "py"}


def test_every_public_name_is_in_the_reference() -> None:
    """A page of it says what each is."""
    pages = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/reference/*.md"))
    told = set(re.findall(r"^\.\. [\w:]+:: entropic\.(\w+)", pages, flags=re.MULTILINE))
    assert told == set(entropic.__all__)


TUTORIAL = ROOT / "docs" / "tutorial.md"


def typed_in(blocks: list[str]) -> str:
    """What an interpreter in the working directory prints when these blocks are typed in."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-i", "-q"],
        input="\n\n".join([*blocks, ""]),  # the empty line that ends a body
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSTARTUP": "", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert set(ran.stderr.split()) <= {">>>", "..."}
    return ran.stdout


def test_the_tutorial_can_be_typed_in(folder: Path) -> None:
    """It prints what it shows, and draws its picture; the next day, nothing is simulated."""
    text = TUTORIAL.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    shown = re.findall(r"^# (.*)$", "".join(blocks), flags=re.MULTILINE)
    assert typed_in(blocks).split() == " ".join(shown).split()

    drawn = matplotlib.image.imread(folder / "logistic.png")
    page = matplotlib.image.imread(ROOT / "docs" / "images" / "logistic.png")
    assert drawn.shape == page.shape
    assert abs(drawn - page).mean() < 0.02

    tomorrow = typed_in(blocks)
    assert "simulating" not in tomorrow
    assert tomorrow.endswith("\n601 hits, 0 runs\n")
