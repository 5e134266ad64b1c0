"""Sphinx: the pages of this folder, results as they lie in benchmarks/, and a reference from the code."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project = "sidestep"
author = "The sidestep authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "reference_pages",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
html_theme = "pydata_sphinx_theme"
html_title = "sidestep"
html_theme_options = {"navigation_with_keys": True, "show_toc_level": 2}
html_show_sphinx = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_use_ivar = True
# Equations and classes of the docstrings are plain text, and `names` are code.
default_role = "code"
nitpicky = False
# `-b linkcheck` asks addresses outside; `scripts/check --all` leaves those out, for it may have no network.
linkcheck_ignore = [r"http://127\.0\.0\.1"]
linkcheck_timeout = 20
linkcheck_retries = 2
