"""How Sphinx builds these pages: ``sphinx-build -W docs docs/_build``."""

import sys

from docutils import nodes
from sphinx.ext import napoleon

import aiotuntap

project = "aiotuntap"
release = version = aiotuntap.__version__
author = "aiotuntap contributors"
copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = True
# Type variables are no place to go to.
nitpick_ignore_regex = [("py:class", r"aiotuntap\._\w+\.[A-Z]")]

html_theme = "furo"
html_title = f"{project} {release}"
html_theme_options = {"top_of_page_buttons": []}
html_static_path = ["static"]
html_css_files = ["pages.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Docstrings write `Name` for what is documented here or in Python.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_type_aliases = {"Frame": "aiotuntap.Frame"}
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Here an attribute's comment is a sentence; Napoleon takes what stands before a colon for its type.
napoleon.GoogleDocstring._consume_inline_attribute = lambda self: ("", self._consume_to_end())


# What Sphinx makes of an alias within another type, and of defaults.
_READABLE = {
    "TypeAliasForwardRef('aiotuntap.Frame')": "Frame",
    "aiotuntap.Frame": "Frame",
    "<Offload.NONE: 0>": "Offload.NONE",
    "<Offload.ALL: 111>": "Offload.ALL",
    "<function example_frame>": "example_frame",
    "Ellipsis": "...",
}


def _shorten(app, what, name, object, options, signature, returned):
    for long, short in _READABLE.items():
        signature = signature and signature.replace(long, short)
    return signature, returned


def _resolve(app, env, node, content):
    """Finds what a docstring of a submodule names without the package, and links to Python's own documentation."""
    target = node["reftarget"]
    if node["refdomain"] != "py":
        return None
    if found := env.domains["py"].find_obj(env, project, None, target, None, 0):
        name, entry = found[0]
        uri = f"{app.builder.get_relative_uri(node['refdoc'], entry.docname)}#{entry.node_id}"
        return nodes.reference("", "", content, internal=True, refuri=uri, reftitle=name)
    module, _, name = target.rpartition(".")
    if module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    page, anchor = ("asyncio-protocol", f"asyncio.{name}") if module == "asyncio.protocols" else (module, target)
    return nodes.reference("", "", content, refuri=f"https://docs.python.org/3/library/{page}.html#{anchor}")


def setup(app):
    app.connect("missing-reference", _resolve)
    app.connect("autodoc-process-signature", _shorten)
