"The code of README and of the documentation's how-to pages runs as printed, on drawn data"
import inspect, re, sys, types
from dataclasses import replace
from pathlib import Path
from shutil import copy, copytree
import numpy as np, pandas as pd, pytest, torchvision
from PIL import Image
from torchvision.models._api import WeightsEnum
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.formats.coco import write_coco
from vision_tasks.data.formats.folders import write_folders
from vision_tasks.data.formats.instance_masks import write_instance_masks
from vision_tasks.data.formats.masks import write_masks
from vision_tasks.data.formats.points import write_dlc
from vision_tasks.data.targets import label_set
from vision_tasks.data.synthetic import SHAPE_CODES, SHAPES, draw_shapes
from vision_tasks.data.formats.table import write_df
from vision_tasks.data.formats.via import write_via
from vision_tasks.data.formats.voc import write_voc
from vision_tasks.data.formats.yolo import write_yolo
from vision_tasks.training.learner import TaskLearner
from vision_tasks.ops.masks import decode_mask

ROOT  = Path(__file__).parent.parent
DOCS  = ROOT/'docs'
PAGES = sorted(DOCS.rglob('*.md'))
HOWTO = sorted((DOCS/'howto').glob('*.md')) + [DOCS/'coming_from.md']

def blocks(file):
    "(line number, code) of the ```python blocks of a page"
    text = file.read_text(encoding='utf-8')
    return [(text[:m.start()].count('\n')+2, m[1]) for m in re.finditer(r'^```python\n(.*?)^```', text, re.M | re.S)]

def run(file, namespace, star='vision_tasks.all'):
    "Execute the blocks of a page in order; an error names the page and the line"
    for line,code in blocks(file):
        code = code.replace('from vision_tasks.all import *', f'from {star} import *')
        exec(compile('\n'*(line-1) + code, str(file), 'exec'), namespace)

@pytest.fixture(scope='module')
def drawn(tmp_path_factory): return draw_all(tmp_path_factory.mktemp('docs'))

@pytest.fixture
def data(drawn, tmp_path, monkeypatch):
    "A copy of the drawn data as the current folder"
    copytree(drawn, tmp_path/'here')
    monkeypatch.chdir(tmp_path/'here')
    return tmp_path/'here'

def draw_all(path):
    "Every file that the pages name, in `path`"
    shapes = [replace(a, split='train' if i%3 else 'valid') for i,a in enumerate(draw_shapes(path, n=18, size=64))]
    plain  = [replace(a, points=None, visible=None, masks=None, mask=None) for a in shapes]
    solid  = [replace(a, points=None, visible=None, mask=None) for a in shapes]
    labels = [Annotation(a.path, a.size, label_set(a), split=a.split) for a in shapes]
    write_voc(plain, path/'voc')
    write_folders([Annotation(a.path, a.size, [(label_set(a) or ['none'])[0]], split=a.split) for a in shapes],
                  path/'folders')
    for name,some in dict(instances=solid, train=solid[:9], val=solid[9:]).items():
        for a in some: (path/'coco/images').mkdir(parents=True, exist_ok=True); copy(a.path, path/'coco/images')
        write_coco([replace(a, path=path/'coco/images'/a.path.name, split=None) for a in some],
                   path/f'coco/{name}.json', path/'coco/images', vocab=SHAPES)
    write_yolo(plain, path/'yolo')
    write_df(labels, path).to_csv(path/'labels.csv', index=False)
    hot = {o: [int(o in a.labels) for a in labels] for o in SHAPES}
    names = [str(a.path.relative_to(path)) for a in shapes]
    pd.DataFrame(dict(fname=names, **hot)).to_csv(path/'onehot.csv', index=False)
    boxes = write_df([replace(a, split=None) for a in plain], path)
    boxes.to_csv(path/'boxes.csv', index=False)
    xywh = boxes.rename(columns=dict(x1='x', y1='y')).assign(w=boxes.x2-boxes.x1, h=boxes.y2-boxes.y1)
    xywh.to_csv(path/'xywh.csv', index=False)
    rows = [[str(a.path.relative_to(path)), 5., 6., *([7., 8.] if i%2 else [None]*2)] for i,a in enumerate(shapes)]
    pd.DataFrame(rows, columns=['fname', 'nose_x', 'nose_y', 'tail_x', 'tail_y']).to_csv(path/'points.csv', index=False)
    semantic = [Annotation(a.path, a.size, mask=a.mask) for a in shapes]
    colors = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    write_masks(semantic, path/'masks_rgb', SHAPE_CODES, colors=colors)
    (path/'masks_0_255').mkdir()
    for a in shapes:
        m = np.asarray(Image.open(a.mask))
        Image.fromarray(np.where(m > 0, 255, 0).astype(np.uint8)).save(path/'masks_0_255'/f'{a.path.stem}.png')
        (path/'per_object'/a.path.stem).mkdir(parents=True)
        for i,o in enumerate(a.masks):
            one = Image.fromarray(decode_mask(o, a.size).astype(np.uint8)*255)
            one.save(path/'per_object'/a.path.stem/f'{i}.png')
    write_instance_masks([replace(a, labels=['shape']*len(a.labels)) for a in apart(solid)], path/'objects')
    write_via(apart(solid), path/'via.json', path/'images')
    first = [Annotation(a.path, a.size, points=np.float32([[5, 6], [20, 30]])) for a in shapes]
    write_dlc(first, path/'CollectedData.csv', ['nose', 'tail'], path=path)
    draw_biwi(path/'biwi')
    return path

def apart(annotations):
    "`annotations` with their first object only: a pixel of an id mask has one object"
    return [replace(a, labels=a.labels[:1], bboxes=a.bboxes[:1], masks=a.masks[:1]) for a in annotations]

def draw_biwi(path):
    "One person, two frames, with the pose and the camera that BIWI has beside them"
    (path/'01').mkdir(parents=True)
    camera = '500 0 320\n0 500 240\n0 0 1\n\n0 0 0 0\n\n1 0 0\n0 1 0\n0 0 1\n\n0 0 0\n\n640 480\n'
    (path/'01'/'rgb.cal').write_text(camera)
    for i in range(2):
        Image.new('RGB', (640, 480)).save(path/'01'/f'frame_0000{i}_rgb.png')
        (path/'01'/f'frame_0000{i}_pose.txt').write_text('1 0 0\n0 1 0\n0 0 1\n\n10 20 900\n')

@pytest.fixture
def random_weights(monkeypatch):
    "torchvision's weights are random numbers of the right shapes: no network"
    names = {torchvision.models.get_model_weights(o): o for o in torchvision.models.list_models()}
    def state(self, *args, **kwargs):
        name,kw = names[type(self)],{}
        if 'weights_backbone' in str(inspect.signature(torchvision.models.get_model_builder(name))):
            kw = dict(weights_backbone=None)
        return torchvision.models.get_model(name, weights=None, **kw).state_dict()
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', state)

# the network that stands in for the one that a page names
SMALL = dict(classification=['test_resnet'], multilabel=['test_resnet'], keypoint=['test_resnet'],
             localization=['test_resnet'], segmentation=('dynamic_unet', 'test_resnet'),
             detection=('ssdlite', 'test_resnet'), instance=('mask_rcnn', 'test_resnet'))

@pytest.fixture
def small(monkeypatch):
    """A module like `vision_tasks.all` whose DataLoaders are small, whose learners have small networks without weights,
    and whose trainings take one epoch"""
    import vision_tasks.all as full
    module = types.ModuleType('small')
    vars(module).update({k: v for k,v in vars(full).items() if not k.startswith('_')})
    def dls(f):
        def wrapped(anns, *args, **kw):
            kw = {**kw, 'bs': 4, 'num_workers': 0, 'size': 64}
            return f(anns, *args, **kw)
        return wrapped
    def learner(f, arch, encoder=None):
        def wrapped(dls, *args, **kw):
            kw = {k: v for k,v in kw.items() if k not in ('encoder', 'arch_kwargs', 'pretrained')}
            if arch == 'mask_rcnn': kw['arch_kwargs'] = dict(width=.125)
            return f(dls, arch, **(kw | (dict(encoder=encoder) if encoder else {})), pretrained=False)
        return wrapped
    for task,archs in SMALL.items():
        setattr(module, f'{task}_dls', dls(getattr(full, f'{task}_dls')))
        setattr(module, f'{task}_learner', learner(getattr(full, f'{task}_learner'), *archs))
    module.JointTransform = lambda size=64, **kw: full.JointTransform(64, **kw)
    for o in ('fine_tune', 'fit_one_cycle'):
        def one_epoch(self, n, *args, _f=getattr(TaskLearner, o), **kw): return _f(self, 1, *args, **kw)
        monkeypatch.setattr(TaskLearner, o, one_epoch)
    monkeypatch.setitem(sys.modules, 'small', module)
    return 'small'

@pytest.mark.parametrize('page', [o for o in HOWTO if o.stem != 'data'], ids=lambda o: o.stem)
@pytest.mark.train
def test_the_code_of_a_page_runs_with_small_networks_in_place_of_the_named_ones(page, data, small):
    run(page, {'__name__': 'page'}, small)

def test_the_code_of_the_page_on_formats_runs_as_printed(data): run(DOCS/'howto'/'data.md', {'__name__': 'page'})

@pytest.mark.train
def test_the_ten_lines_of_readme_run_as_printed(data, random_weights):
    (line,code),*_ = blocks(ROOT/'README.md')
    assert len(code.splitlines()) <= 10
    exec(compile('\n'*(line-1) + code, 'README.md', 'exec'), {'__name__': 'page'})
    assert Path('auto.csv').is_file() and Path('multilabel.pkl').is_file()

@pytest.mark.parametrize('page', [ROOT/'README.md', *PAGES], ids=lambda o: o.stem)
def test_every_python_block_compiles_and_no_page_names_a_path_of_a_machine(page):
    for line,code in blocks(page): compile('\n'*(line-1) + code, str(page), 'exec')
    assert not re.search(r'(?<![\w.])/(home|root|Users|work|tmp|mnt)/', page.read_text(encoding='utf-8'))

def test_every_reader_and_writer_has_a_section_on_the_page_of_formats():
    import vision_tasks.all as full
    text = (DOCS/'howto'/'data.md').read_text(encoding='utf-8')
    names = [o for o in vars(full) if re.fullmatch(r'(read|write)_\w+', o) and callable(getattr(full, o))
             and getattr(full, o).__module__.startswith('vision_tasks.') and o not in LOWER]
    assert len(names) > 12
    named = lambda o: f'`{o}`' in text or f'{o}(' in text
    assert [o for o in names if not named(o) and not (o.startswith('write_') and named(f'read{o[5:]}'))] == []

# what the star import has beside the readers of data sets
LOWER = ('read_codes', 'read_image')

def test_readme_has_under_120_lines(): assert len((ROOT/'README.md').read_text(encoding='utf-8').splitlines()) < 120

def test_the_links_of_readme_lead_to_files():
    links = re.findall(r'\]\((?!https?:|#)([^)#\s]+)', (ROOT/'README.md').read_text(encoding='utf-8'))
    assert len(links) > 20 and [o for o in links if not (ROOT/o).exists()] == []

def test_the_changelog_has_versions_with_dates_and_each_of_their_sections_once():
    text = (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')
    heads = re.findall(r'^## (.*)', text, re.M)
    assert heads[0] == 'Unreleased' and all(re.fullmatch(r'\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)', o) for o in heads[1:])
    for part in text.split('\n## ')[1:]:
        sections = re.findall(r'^### (.*)', part, re.M)
        assert len(sections) == len(set(sections)) and set(sections) <= {'Added', 'Changed', 'Fixed', 'Removed'}
