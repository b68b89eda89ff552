"""Sphinx: `make docs`. A warning is an error: see _extensions/reference.py for what is checked beyond Sphinx's own checks."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_extensions"), str(DOCS.parent)]

import decentral  # noqa: E402

project = "decentral"
author = "The decentral developers"
copyright = "The decentral developers; Apache-2.0"
version = release = decentral.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
    "reference",
    "notebook_pages",
]
exclude_patterns = ["add_an_algorithm.py", "_*", "README.md"]
language = "en"
nitpicky = True  # a reference to nothing is a warning, and warnings are errors

# -- pages -------------------------------------------------------------------------------------------------------------
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # notebooks run again when they have changed
nb_execution_cache_path = str(DOCS.parent / "build" / "notebooks")
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_ipywidgets_js = {}  # what draws widgets would be fetched from elsewhere

# -- API ---------------------------------------------------------------------------------------------------------------
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": False}
autodoc_inherit_docstrings = False  # what an algorithm's functions do is said once, in Algorithm
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
maximum_signature_line_length = 100
add_module_names = False

# -- HTML: nothing is fetched from elsewhere ---------------------------------------------------------------------------
html_theme = "furo"
html_title = f"decentral {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True, "sidebar_hide_name": False}
mathjax_path = "mathjax/tex-svg.js"  # 3.2.2, one file, no fonts to fetch; its licence is beside it
mathjax3_config = {"options": {"enableMenu": False}}  # the menu would fetch what it offers
