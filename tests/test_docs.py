"""What the written pages say about this repository: links, names of tests, the module table."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for folder in ("", "docs/", "benchmarks/", "examples/service/")
    for page in ROOT.glob(f"{folder}*.md")
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
