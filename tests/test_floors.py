"The house stands: imports go down only, names hide none of fastai's, files compile clean"
import ast, sys
from pathlib import Path
import pytest
from pyflakes.api import checkPath
from pyflakes.reporter import Reporter
import vision_tasks

ROOT = Path(vision_tasks.__file__).parent
REPO = ROOT.parent
FLOORS = dict(ops=1, data=2, models=2, losses=3, metrics=3, thresholds=3, show=3, learner=4,
              multilabel=5, keypoint=5, localization=5, segmentation=5, detection=5, instance=5, all=6, demo=7)
READERS = ['annotation', 'image', 'voc', 'coco', 'yolo', 'table', 'masks', 'synthetic']
FILES = sorted(p for p in ROOT.rglob('*.py') if p != ROOT/'__init__.py')

def room(parts): return parts[0].removesuffix('.py')

def imports(path):
    "(absolute module parts below vision_tasks, or None; top-level package) of every import of a file, those in functions too"
    here = path.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): yield from ((o.name.split('.')[1:] if o.name.startswith('vision_tasks') else None, o.name.split('.')[0]) for o in node.names)
        if not isinstance(node, ast.ImportFrom): continue
        if node.level:
            base = list(here[:len(here)-node.level])
            for o in node.names: yield base + ((node.module or o.name).split('.')), 'vision_tasks'
        else: yield (node.module.split('.')[1:] if node.module.startswith('vision_tasks') else None), node.module.split('.')[0]

@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_from_lower_floors_and_its_own_folder_only(path):
    me = room(path.relative_to(ROOT).parts)
    for ours,top in imports(path):
        if top == 'vision_tasks' and ours:
            it = ours[0]
            # detection is what instance builds on: the one task that a task may import
            assert it == me or FLOORS[it] < FLOORS[me] or (me, it) == ('instance', 'detection'), f"{path.name} on floor {FLOORS[me]} imports {it}"
        if me == 'data' and path.stem in READERS: assert top not in ('torch', 'torchvision', 'fastai', 'fastcore', 'timm'), f"{path.name} imports {top}"
        if path.match('ops/masks.py'): assert top in ('numpy', '__future__'), f"ops/masks.py imports {top}"

def test_every_file_has_a_floor(): assert {room(p.relative_to(ROOT).parts) for p in FILES} <= set(FLOORS)

def test_importing_the_package_costs_nothing(): assert {o.id for o in ast.walk(ast.parse((ROOT/'__init__.py').read_text())) if isinstance(o, ast.Name)} == {'__version__'}

def test_no_public_name_of_ours_hides_one_of_fastai():
    import fastai.vision.all as theirs
    import vision_tasks.all as ours
    new = {k: getattr(ours, k) for k in vars(ours) if not k.startswith('_')}
    hidden = [k for k,v in new.items() if hasattr(theirs, k) and getattr(theirs, k) is not v]
    assert not hidden

def test_every_module_says_what_is_public():
    for p in FILES:
        if p.name in ('__init__.py', 'all.py', 'demo.py'): continue
        tree = ast.parse(p.read_text())
        assert ast.get_docstring(tree), p
        assert any(isinstance(o, ast.Assign) and o.targets[0].id == '__all__' for o in tree.body if isinstance(o, ast.Assign) and isinstance(o.targets[0], ast.Name)), p

def test_no_file_has_an_unused_import_or_an_undefined_name():
    bad = [str(p) for d in ('vision_tasks', 'tests', 'examples', 'benchmarks') for p in sorted((REPO/d).rglob('*.py'))
           if p.name not in ('all.py',) and 'import *' not in p.read_text() and checkPath(str(p), Reporter(sys.stdout, sys.stderr))]
    assert not bad

def test_lines_are_at_most_170_columns():   # the aim is 120; signatures and messages may be longer
    long = [f'{p}:{i}' for d in ('vision_tasks', 'tests', 'examples', 'benchmarks') for p in sorted((REPO/d).rglob('*.py')) for i,l in enumerate(p.read_text().split('\n'), 1) if len(l) > 170]
    assert not long
