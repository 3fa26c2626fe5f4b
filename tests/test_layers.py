"The layers of the package: imports go down only, public names hide none of fastai's, files compile clean"
import ast, subprocess, sys
from pathlib import Path
import pytest
from pyflakes.api import checkPath
from pyflakes.reporter import Reporter
import vision_tasks

ROOT = Path(vision_tasks.__file__).parent
REPO = ROOT.parent
LAYERS = dict(arguments=0, signatures=0, threads=0, warning=0, documented=1, distributed=1, ops=1, data=2, models=2,
              losses=3, metrics=3, show=4, training=5, classification=6, multilabel=6, keypoint=6, localization=6,
              segmentation=6, detection=6, instance=6, all=7, demo=8)
# what data sets are read and checked with works without torch
WITHOUT_TORCH = ['annotation', 'errors', 'check', 'drop', 'reading', 'splits', 'writing', 'image', 'class_masks',
                 'synthetic']
OPTIONAL = ['accelerate', 'skimage']   # imported where they are used
FILES = sorted(p for p in ROOT.rglob('*.py') if p != ROOT/'__init__.py')
ALL = [p for d in ('vision_tasks', 'tests', 'examples', 'benchmarks') for p in sorted((REPO/d).rglob('*.py'))]

def room(parts): return parts[0].removesuffix('.py')

def below(module): return module.split('.')[1:] if module.startswith('vision_tasks') else None

def imports(path, tree=None):
    "(absolute module parts below vision_tasks, or None; top-level package) of every import, those in functions too"
    here = path.relative_to(ROOT).parts
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for o in node.names: yield below(o.name), o.name.split('.')[0]
        if not isinstance(node, ast.ImportFrom): continue
        if node.level:
            base = list(here[:len(here)-node.level])
            for o in node.names: yield base + ((node.module or o.name).split('.')), 'vision_tasks'
        else: yield below(node.module), node.module.split('.')[0]

@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_from_lower_layers_and_its_own_folder_only(path):
    me = room(path.relative_to(ROOT).parts)
    for ours,top in imports(path):
        if top == 'vision_tasks' and ours:
            it = ours[0]
            # instance builds on detection: the one task that another may import
            allowed = it == me or LAYERS[it] < LAYERS[me] or (me, it) == ('instance', 'detection')
            assert allowed, f"{path.name} in layer {LAYERS[me]} imports {it}"
            assert (me, it) != ('losses', 'data'), f"losses/{path.name} imports from data"
        if me == 'data' and (path.stem in WITHOUT_TORCH or path.parent.name == 'formats'):
            assert top not in ('torch', 'torchvision', 'fastai', 'fastcore', 'timm'), f"{path.name} imports {top}"
        if path.match('ops/masks.py') or path.match('ops/rle.py') or path.match('ops/polygons.py'):
            assert top in ('numpy', '__future__', 'vision_tasks'), f"ops/{path.name} imports {top}"
        assert top != 'matplotlib' or me in ('show', 'demo'), f"{path.name} imports matplotlib"

def test_every_file_has_a_layer(): assert {room(p.relative_to(ROOT).parts) for p in FILES} <= set(LAYERS)

@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_optional_packages_are_imported_inside_functions(path):
    functions = [o for o in ast.walk(ast.parse(path.read_text())) if isinstance(o, (ast.FunctionDef, ast.Lambda))]
    inside = {top for f in functions for _,top in imports(path, f)}
    assert inside <= {*OPTIONAL}

def test_no_underscore_name_is_imported_from_another_module():
    bad = [f'{p.relative_to(ROOT)}: {a.name}' for p in FILES for o in ast.walk(ast.parse(p.read_text()))
           if isinstance(o, ast.ImportFrom) and (o.level or below(o.module) is not None)
           for a in o.names if a.name.startswith('_')]
    assert not bad

def test_the_package_by_itself_imports_only_the_standard_library():
    code = "import sys, vision_tasks; print({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names)"
    out = subprocess.run([sys.executable, '-S', '-c', code], capture_output=True, text=True, check=True,
                         cwd=REPO).stdout
    assert set(eval(out)) <= {'vision_tasks', '__main__', '_distutils_hack'}

def test_every_module_says_what_is_public():
    for p in FILES:
        if p.name in ('__init__.py', 'all.py', 'demo.py'): continue
        tree = ast.parse(p.read_text())
        assert ast.get_docstring(tree), p
        assigned = [o.targets[0] for o in tree.body if isinstance(o, ast.Assign)]
        assert any(isinstance(o, ast.Name) and o.id == '__all__' for o in assigned), p

def test_no_file_has_an_unused_import_or_an_undefined_name():
    bad = [str(p) for p in ALL if p.name != 'all.py' and 'import *' not in p.read_text()
           and checkPath(str(p), Reporter(sys.stdout, sys.stderr))]
    assert not bad

def test_lines_are_at_most_120_columns():
    long = [f'{p}:{i}' for p in ALL for i,l in enumerate(p.read_text().split('\n'), 1) if len(l) > 120]
    assert not long
