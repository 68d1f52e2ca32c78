"""How Sphinx builds these pages: ``sphinx-build -W docs docs/_build``."""

import aiotuntap

project = "aiotuntap"
release = version = aiotuntap.__version__
author = "aiotuntap contributors"
copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = f"{project} {release}"

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


# What Sphinx makes of an alias within another type, and of defaults.
_READABLE = {
    "TypeAliasForwardRef('aiotuntap.Frame')": "Frame",
    "aiotuntap.Frame": "Frame",
    "<Offload.NONE: 0>": "Offload.NONE",
    "<function example_frame>": "example_frame",
    "Ellipsis": "...",
}


def _shorten(app, what, name, object, options, signature, returned):
    for long, short in _READABLE.items():
        signature = signature and signature.replace(long, short)
    return signature, returned


def setup(app):
    app.connect("autodoc-process-signature", _shorten)
