"""How Sphinx builds these pages; `make docs` calls it.

The pages are Markdown, with links between files, so that they can be read in the repository, too.
The reference comes from the docstrings, which `Store` shares with `AsyncStore`.
"""

import inspect
import re
from typing import Any

from docutils.nodes import Element, Text
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject  # type: ignore[attr-defined]
from sphinx.environment import BuildEnvironment

import entropic

project = "entropic"
author = "The entropic developers"
release = entropic.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Every warning is an error. That holds for references to names of ours, too; those of others have
# their pages elsewhere, and a build needs no network to look for them.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!entropic\b).*")]
nitpick_ignore = [  # a type variable: the model
    ("py:class", f"entropic.{module}.R") for module in ("async_queries", "async_store", "outlook")
]

myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # one list of a class's attributes
napoleon_attr_annotations = False  # their types are in the signature, or those of columns

html_theme = "furo"
html_title = f"entropic {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
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
    app.connect("autodoc-process-docstring", _return_no_type, priority=410)
    app.connect("autodoc-process-docstring", _link_names, priority=420)
    app.connect("autodoc-process-signature", _without_making_errors)
    app.connect("missing-reference", _at_its_public_name)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"


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


def _return_no_type(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep napoleon from taking what stands before a colon for a type: the signature has that."""
    for number, line in enumerate(lines[:-1]):
        if line in {"Returns:", "Yields:"}:
            lines[number + 1] = re.sub(r"^( +)", r"\1: ", lines[number + 1])


def _link_names(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Make a link of each public name of ours that a docstring has in double backticks."""

    def link(found: re.Match[str]) -> str:
        first = found[1].partition(".")[0]
        return f":py:obj:`{found[1]} <entropic.{found[1]}>`" if first in _LINKED else found[0]

    lines[:] = [re.sub(r"(?<!`)``([\w.]+)``", link, line) for line in lines]


_LINKED = set(entropic.__all__) - {"Mapped", "mapped_column", "__version__"}


def _without_making_errors(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Leave out what an error is made of: users catch them, and read their attributes."""
    return ("", "") if what == "exception" else None


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
