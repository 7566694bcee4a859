"""What runs the checks: hooks and the workflow call the Makefile, and say nothing of their own."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def loaded(path: str) -> Any:
    """What a YAML file says."""
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def parts_of_the_check() -> set[str]:
    """The targets that ``make check`` runs."""
    found = re.search(r"^check: ([a-z ]+) ##", MAKEFILE, flags=re.MULTILINE)
    assert found is not None
    return set(found[1].split())


def version(text: str) -> tuple[int, ...]:
    """A version of Python, to compare."""
    return tuple(map(int, text.split(".")))


def test_the_hooks_are_the_parts_of_the_check_but_the_tests() -> None:
    """By way of make, with the tools of the virtual environment: none has a version of its own."""
    (repository,) = loaded(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert hooks.keys() == parts_of_the_check() - {"test"}
    for target, hook in hooks.items():
        assert (hook["entry"], hook["language"]) == (f"make {target}", "system")
        assert hook["pass_filenames"] is False
        for path in ("entropic/store.py", "tests/models.py", "pyproject.toml"):
            assert re.search(hook["files"], path)
        assert bool(re.search(hook["files"], "docs/tutorial.md")) == (target == "docs")


def test_the_workflow_runs_the_check_on_each_python_that_is_promised() -> None:
    """From the oldest that can install it on, on Linux and macOS; it may change nothing."""
    workflow = loaded(".github/workflows/check.yml")
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["make check PYTHON=python"]
    assert workflow["permissions"] == {"contents": "read"}

    matrix = job["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest"]
    tried = matrix["python"]
    assert tried == sorted(set(tried), key=version)
    assert PROJECT["requires-python"] == f">={tried[0]}"
    said = re.findall(r":: Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert said == tried[: len(said)]
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"Python {tried[0]} to {tried[-1]}" in told
