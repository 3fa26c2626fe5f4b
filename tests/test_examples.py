"Every example is short, can be imported without running, and does what it says"
import ast, os, subprocess, sys
from pathlib import Path
import pytest
from fastai.learner import load_learner
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.blocks import label_set
from vision_tasks.data.table import write_df

ROOT     = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT/'examples').glob('*.py'))
# arguments of the smallest run that makes sense; a new example joins with one line
TINY = {'train_multilabel': ['--arch', 'test_resnet', '--weights', 'none', '--epochs', '1', '--size', '32']}

def labels_csv(shapes, folder):
    "A csv file beside the pictures of `shapes`"
    anns = [Annotation(a.path, a.size, label_set(a), split='train' if i%4 else 'valid') for i,a in enumerate(shapes)]
    write_df(anns, shapes[0].path.parent).to_csv(folder/'data.csv', index=False)
    return folder/'data.csv'

@pytest.mark.parametrize('example', EXAMPLES, ids=lambda o: o.stem)
def test_an_example_is_under_40_lines_and_has_a_main_guard(example):
    text = example.read_text()
    assert len(text.splitlines()) < 40
    last = ast.parse(text).body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"
    assert not [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.names[0].name == '*']

@pytest.mark.parametrize('data', ['drawn', 'csv'])
@pytest.mark.parametrize('example', EXAMPLES, ids=lambda o: o.stem)
def test_an_example_trains_draws_and_exports_a_model_that_loads(example, data, shapes, tmp_path):
    csv = [labels_csv(shapes, shapes[0].path.parent)] if data == 'csv' else []
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'MPLBACKEND': 'Agg', 'OMP_NUM_THREADS': '1'}
    cmd = [sys.executable, example, *csv, *TINY[example.stem], '--out', 'out']
    run = subprocess.run(cmd, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert [o.name for o in tmp_path.iterdir()] == ['out'] and list((tmp_path/'out').glob('*.png'))
    exported, = (tmp_path/'out').glob('*.pkl')
    learn = load_learner(exported)
    for o in learn.dls.vocab: assert o in run.stdout
    with learn.no_bar(): assert learn.annotate(shapes[0].path)[0].path == shapes[0].path
