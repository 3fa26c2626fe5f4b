"Every example is short, can be imported without running, and does what it says"
import ast, importlib, os, runpy, subprocess, sys
from dataclasses import replace
from pathlib import Path
from shutil import copy
import numpy as np, pandas as pd, pytest
from fastai.learner import load_learner
import vision_tasks.all as v
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.targets import label_set
from vision_tasks.data.formats.coco import write_coco
from vision_tasks.data.formats.folders import write_folders
from vision_tasks.data.synthetic import SHAPE_CODES, SHAPE_POINTS
from vision_tasks.data.formats.table import write_df
from vision_tasks.data.formats.voc import write_voc
from vision_tasks.data.formats.yolo import write_yolo

ROOT     = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT/'examples').glob('*.py'))
BENCHMARKS = sorted((ROOT/'benchmarks').glob('*.py'))
SMALL    = ['--arch', 'test_resnet', '--weights', 'none', '--epochs', '1', '--size', '32']

def csv(df, shapes, name):
    "`df` as a file beside the images of `shapes`"
    file = shapes[0].path.parent/f'{name}.csv'
    df.to_csv(file, index=False)
    return file

def labels_csv(shapes):
    "The labels of `shapes`, with their split"
    anns = [Annotation(a.path, a.size, label_set(a), split='train' if i%4 else 'valid') for i,a in enumerate(shapes)]
    return [csv(write_df(anns, shapes[0].path.parent), shapes, 'labels')]

def class_folders(shapes):
    "A folder of `shapes` for the first class of each, with their split"
    anns = [Annotation(a.path, a.size, a.labels[:1] or ['none'], split='train' if i%4 else 'valid')
            for i,a in enumerate(shapes)]
    return [write_folders(anns, shapes[0].path.parent.parent/'folders')]

def points_csv(shapes):
    "The points of the first object of each of `shapes`, their names in the header"
    rows = [[a.path.name, *a.points[0].ravel()] for a in shapes if a.labels]
    cols = ['fname', *(f'{o}_{c}' for o in SHAPE_POINTS for c in 'xy')]
    return [csv(pd.DataFrame(rows, columns=cols), shapes, 'points')]

def boxes_csv(shapes): return [csv(write_df(shapes, shapes[0].path.parent), shapes, 'boxes')]

def masks_json(shapes):
    "The shapes with their masks, as COCO has them"
    file = shapes[0].path.parent/'masks.json'
    write_coco([replace(a, points=None, visible=None) for a in shapes], file)
    return [file]

def mask_folders(shapes):
    "Folders of images and masks, and the names of the classes"
    return [shapes[0].path.parent, shapes[0].mask.parent, ','.join(SHAPE_CODES)]

# for each example the arguments of the smallest run that makes sense, and what gives those that name data of `shapes`
TINY = {'train_classification': (SMALL, class_folders),
        'train_multilabel':   (SMALL, labels_csv),
        'train_keypoint':     (SMALL, points_csv),
        'train_localization': (SMALL, boxes_csv),
        'train_segmentation': (['--encoder', *SMALL[1:]], mask_folders),
        'train_detection':    (['--encoder', *SMALL[1:]], boxes_csv),
        'train_instance':     (['--encoder', *SMALL[1:], '--width', '.125'], masks_json),
        'train_distributed':  (['--encoder', *SMALL[1:]], boxes_csv)}   # alone; in two processes in test_distributed

def fewer(draw):
    "`draw` of an eighth of the images: the examples draw 400"
    return lambda path, n, **kwargs: draw(path, n=n//8, **kwargs)

# runs an example so in a process of its own
FEWER = """
import runpy, vision_tasks.all as v
def fewer(draw): return lambda path, n, **kwargs: draw(path, n=n//8, **kwargs)
v.draw_shapes,v.draw_figures = fewer(v.draw_shapes),fewer(v.draw_figures)
runpy.run_path({!r}, run_name='__main__')
"""

@pytest.mark.parametrize('example', EXAMPLES, ids=lambda o: o.stem)
def test_an_example_has_at_most_41_lines_and_a_main_guard(example):
    text = example.read_text()
    assert len(text.splitlines()) <= 41
    last = ast.parse(text).body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"
    assert not [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.names[0].name == '*']

def in_a_process(example, args, folder):
    "What the example prints, run as a user runs it"
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'MPLBACKEND': 'Agg', 'OMP_NUM_THREADS': '1'}
    cmd = [sys.executable, '-c', FEWER.format(str(example)), *args]
    run = subprocess.run(cmd, cwd=folder, env=env, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr
    return run.stdout

def in_this_process(example, args, folder, monkeypatch, capsys):
    "The same without the imports, which take longer than the training"
    for name in ('draw_shapes', 'draw_figures'): monkeypatch.setattr(v, name, fewer(getattr(v, name)))
    monkeypatch.setattr(sys, 'argv', [str(example), *args])
    monkeypatch.chdir(folder)
    capsys.readouterr()
    runpy.run_path(str(example), run_name='__main__')
    return capsys.readouterr().out

@pytest.mark.train
@pytest.mark.parametrize('data', ['drawn', 'given'])
@pytest.mark.parametrize('example', EXAMPLES, ids=lambda o: o.stem)
def test_an_example_trains_draws_and_exports_a_model_that_loads(example, data, shapes, tmp_path, monkeypatch, capsys):
    "One in a process of its own, and the one that joins several processes"
    args,given = TINY[example.stem]
    args = [*(given(shapes) if data == 'given' else []), *args, '--out', 'out']
    alone = (example.stem, data) in (('train_detection', 'given'), ('train_distributed', 'drawn'))
    out = in_a_process(example, args, tmp_path) if alone else in_this_process(example, [str(o) for o in args], tmp_path,
                                                                              monkeypatch, capsys)
    assert [o.name for o in tmp_path.iterdir()] == ['out'] and list((tmp_path/'out').glob('*.png'))
    exported, = (tmp_path/'out').glob('*.pkl')
    learn = load_learner(exported)
    for o in learn.dls.vocab: assert o in out
    with learn.no_bar(): assert learn.annotate(shapes[0].path)[0].path == shapes[0].path

@pytest.mark.parametrize('data', ['.', 'auto.json', 'data.yaml', 'boxes.csv'])
def test_train_detection_reads_boxes_of_every_format_by_its_suffix(data, shapes, tmp_path):
    plain = [replace(a, masks=None, points=None, visible=None, mask=None) for a in shapes]
    images = None
    if data == '.': write_voc(plain, tmp_path)
    elif data == 'auto.json': images = write_coco(plain, tmp_path/data)
    elif data == 'data.yaml': write_yolo(plain, tmp_path)
    else:   # the names of a csv lie below it
        plain = [replace(a, path=Path(copy(a.path, tmp_path))) for a in plain]
        write_df(plain, tmp_path).to_csv(tmp_path/data, index=False)
    read = runpy.run_path(str(ROOT/'examples'/'train_detection.py'))['read']
    got = sorted(read(tmp_path/data, images), key=lambda a: a.path.name)
    assert [a.path.name for a in got] == [a.path.name for a in shapes]
    for a,b in zip(got, shapes):
        assert a.labels == b.labels
        np.testing.assert_allclose(a.bboxes, b.bboxes, atol=1e-3)

@pytest.mark.parametrize('path', [*EXAMPLES, *BENCHMARKS], ids=lambda p: p.stem)
def test_the_names_that_a_script_imports_from_the_package_exist(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or '').startswith('vision_tasks'): continue
        module = importlib.import_module(node.module)
        missing = [o.name for o in node.names if o.name != '*' and not hasattr(module, o.name)]
        assert not missing, f"{node.module} has no {missing}"
