"""The site: sphinx-build -W -b html docs docs/_build"""
from timm_preact import __version__

project = 'timm_preact'
author = 'the authors of timm_preact'
release = __version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
myst_heading_anchors = 3  # a link to a heading is the one that works on GitHub

default_role = 'code'  # docstrings have Markdown's single backquotes
smartquotes = False
autodoc_default_options = {'members': True, 'show-inheritance': True}
autoclass_content = 'both'  # arguments are described where __init__ takes them
autodoc_member_order = 'bysource'
napoleon_use_ivar = True  # an attribute is described once, by its class
autodoc_typehints = 'description'

html_theme = 'furo'
html_title = 'timm_preact'
html_copy_source = False
html_static_path = ['_static']
html_css_files = ['site.css']
