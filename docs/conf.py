"Sphinx configuration: `make docs` builds the site into build/docs, with warnings as errors"
import os, sys
from pathlib import Path
from shutil import rmtree

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]
os.environ.setdefault('MPLBACKEND', 'Agg')
import api_reference
import vision_tasks

project   = 'vision_tasks'
author    = 'the vision_tasks developers'
copyright = f'2026, {author}. Apache-2.0'
release = version = vision_tasks.__version__

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton', 'api_reference']
exclude_patterns = ['Thumbs.db', '.DS_Store']
# the notebooks are stored with their outputs
nb_execution_mode = 'off'
nb_merge_streams  = True
myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors   = 3

autodoc_typehints          = 'none'       # the types stand beside the parameters
autodoc_member_order       = 'bysource'
autodoc_default_options    = {'members': True,
                              'exclude-members': 'encodes,decodes,setups'}  # of fastai's transforms
napoleon_google_docstring  = False
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
default_role = 'py:obj'
add_module_names = False
toc_object_entries_show_parents = 'hide'

html_theme = 'pydata_sphinx_theme'
html_title = f'vision_tasks {release}'
html_static_path = ['_static']
html_css_files   = ['site.css']
html_show_sourcelink = False
html_copy_source     = False
html_theme_options = dict(
    navbar_start=['navbar-logo'], navbar_end=['theme-switcher'], navbar_persistent=['search-button'],
    secondary_sidebar_items=['page-toc'], show_prev_next=True, header_links_before_dropdown=6,
    footer_start=['copyright'], footer_end=[], logo=dict(text='vision_tasks'), show_nav_level=1,
    pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark')
copybutton_prompt_text = r'>>> |\.\.\. |\$ '
copybutton_prompt_is_regexp = True

# what is generated or copied lies in folders that git ignores
for o in ('api', 'notebooks'): rmtree(HERE/o, ignore_errors=True)
api_reference.write_pages(HERE/'api')
api_reference.copy_notebooks(ROOT/'nbs', HERE/'notebooks')
