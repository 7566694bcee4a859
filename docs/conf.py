"""How Sphinx builds these pages; `make docs` calls it.

The pages are Markdown, with links between files, so that they can be read in the repository, too.
The reference comes from the docstrings, which `Store` shares with `AsyncStore`.
"""

import inspect
import re
from typing import Any

from docutils.nodes import Element, Text
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import entropic

project = "entropic"
author = "The entropic developers"
release = entropic.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Every warning is an error. That holds for references to names of ours, too; those of others have
# their pages elsewhere, and a build needs no network to look for them.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!entropic\b).*")]
nitpick_ignore = [("py:class", "entropic.async_store.R")]  # a type variable: the model

myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
# As a list below the class: an attribute of its own for each would be documented twice.
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"entropic {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"


def setup(app: Sphinx) -> None:
    """Connect what is below."""
    # Before napoleon, which has the usual 500, makes reStructuredText of a docstring.
    app.connect("autodoc-process-docstring", _tell_the_rest, priority=400)
    app.connect("autodoc-process-docstring", _link_names, priority=410)
    app.connect("missing-reference", _at_its_public_name)


def _tell_the_rest(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Add to a method of `Store` the sections of its twin, to which its docstring refers."""
    found = re.fullmatch(r"entropic\.Store\.(\w+)", name)
    if found is None or found[1] == "close":
        return
    told = inspect.getdoc(getattr(entropic.AsyncStore, found[1])) or ""
    sections = re.search(r"^(Args|Returns|Yields|Raises):$.*", told, re.DOTALL | re.MULTILINE)
    assert sections is not None, name
    lines.extend(["", *sections[0].splitlines(), ""])


def _link_names(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Make a link of each public name of ours that a docstring has in double backticks."""

    def link(found: re.Match[str]) -> str:
        first = found[1].partition(".")[0]
        return f":py:obj:`{found[1]} <entropic.{found[1]}>`" if first in _LINKED else found[0]

    lines[:] = [re.sub(r"(?<!`)``([A-Za-z.]+)``", link, line) for line in lines]


_LINKED = set(entropic.__all__) - {"Mapped", "mapped_column", "__version__"}


def _at_its_public_name(
    app: Sphinx, env: BuildEnvironment, node: Element, text: Element
) -> Element | None:
    """Lead an annotation such as `entropic.errors.Failure` to `entropic.Failure`."""
    home, _, name = node.get("reftarget", "").rpartition(".")
    if entropic._HOMES.get(name) != home:
        return None
    return env.get_domain("py").resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], f"entropic.{name}", node, Text(name)
    )
