"OpenMP's threads sleep while they wait, where the demo and the examples start training"
import ast, os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
STARTS = [ROOT/'vision_tasks/demo.py', *sorted((ROOT/'examples').glob('*.py'))]

def run(code, **env):
    env = {k: v for k,v in os.environ.items() if k != 'OMP_WAIT_POLICY'} | {'PYTHONPATH': str(ROOT)} | env
    res = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True)
    return res.stdout.split()

SET = "import os, sys; from vision_tasks.threads import wait_passively; a = wait_passively(); " \
      "print('torch' in sys.modules, a, os.environ['OMP_WAIT_POLICY'])"

def test_it_is_set_without_importing_torch(): assert run(SET) == ['False', 'True', 'PASSIVE']

def test_a_users_own_value_wins(): assert run(SET, OMP_WAIT_POLICY='ACTIVE') == ['False', 'True', 'ACTIVE']

def test_it_tells_where_it_came_too_late(): assert run('import torch; ' + SET) == ['True', 'False', 'PASSIVE']

def test_importing_the_package_leaves_small_floats_as_they_are():
    small = "print((torch.tensor([1e-40])*2 > 0).item(), (np.array([1e-310])*2 > 0).item())"
    assert run(f"from vision_tasks.all import *; {small}") == ['True', 'True']
    assert run(f"import numpy as np, torch; torch.set_flush_denormal(True); {small}") == ['False', 'False']

@pytest.mark.parametrize('path', STARTS, ids=lambda o: o.stem)
def test_what_starts_training_sets_it_before_anything_that_imports_torch(path):
    body = ast.parse(path.read_text()).body
    call = next(i for i,o in enumerate(body) if ast.unparse(o) == 'wait_passively()')
    tops = {n.partition('.')[0] for o in body[:call] if isinstance(o, (ast.Import, ast.ImportFrom))
            for n in ([o.module or ''] if isinstance(o, ast.ImportFrom) else [a.name for a in o.names])}
    assert tops - {'', '__future__', 'threads', 'vision_tasks'} <= sys.stdlib_module_names
    ours = [o.module for o in body[:call] if isinstance(o, ast.ImportFrom) and (o.level or 'vision_tasks' in o.module)]
    assert ours in (['threads'], ['vision_tasks.threads'])
