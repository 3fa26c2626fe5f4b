"A cache of decoded pixels: the same batches, exact coordinates, shared by processes, kept over runs, never stale"
import os, pickle, random, signal, subprocess, sys, textwrap
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.vision.augment import Resize
from PIL import Image
from torch import Tensor
from vision_tasks.classification import classification_dls
from vision_tasks.data import cache as caches
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.blocks import FileImageEncode
from vision_tasks.data.cache import available_memory, stored_scale
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.masks import read_masks
from vision_tasks.data.image import set_grey_range
from vision_tasks.data.items import FileImage
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import CropView, FitView, IoUView, JitterView, ZoomOutView
from vision_tasks.detection import detection_dls
from vision_tasks.instance import instance_dls
from vision_tasks.keypoint import keypoint_dls
from vision_tasks.localization import localization_dls
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.segmentation import segmentation_dls
from vision_tasks.training.files import load_learner

ALL = lambda anns: (list(range(len(anns))), list(range(len(anns))))

def photo(rng, w, h):
    "Smooth colours with some detail, as of a photograph"
    low = rng.integers(0, 256, (12, 16, 3), np.uint8)
    im = np.asarray(Image.fromarray(low).resize((w, h), Image.BICUBIC), float) + rng.normal(0, 2, (h, w, 1))
    return Image.fromarray(im.clip(0, 255).astype(np.uint8))

@pytest.fixture
def photos(tmp_path):
    "Images of several sizes with boxes, points, polygons and a class mask, as annotations"
    rng,res = np.random.default_rng(0),[]
    for i,(w,h) in enumerate([(400, 300), (300, 400), (60, 50), (640, 480), (901, 677), (64, 64)]):
        f = tmp_path/f'images/{i}.png'
        f.parent.mkdir(exist_ok=True)
        photo(rng, w, h).save(f)
        b = np.sort(rng.uniform(.1, .9, (3, 2, 2)), 1).reshape(3, 4)*[w, h, w, h]
        b[:,2:] = np.maximum(b[:,2:], b[:,:2] + [w/5, h/5]).clip(max=[w, h])
        corners = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1,y1,x2,y2 in b.tolist()]
        yy,xx = np.mgrid[:h,:w]
        m = ((xx*5//w + yy*4//h)%3).astype(np.uint8)
        Image.fromarray(m).save(tmp_path/f'mask{i}.png')
        res.append(Annotation(f, (w, h), ['a', 'b', 'a'], b, masks=corners, mask=tmp_path/f'mask{i}.png'))
    return res

def labelled(anns): return [Annotation(a.path, a.size, [a.labels[0]]) for a in anns]
def boxed(anns): return [replace(a, masks=None, mask=None) for a in anns]

TASKS = {
    'multilabel':     lambda anns, **kw: multilabel_dls(labelled(anns), ['a', 'b'], **kw),
    'classification': lambda anns, **kw: classification_dls(labelled(anns), ['a', 'b'], **kw),
    'keypoint':       lambda anns, **kw: keypoint_dls([Annotation(a.path, a.size, points=a.bboxes[:,:2]) for a in anns],
                                                      flip_pairs=[], **kw),
    'localization':   lambda anns, **kw: localization_dls([Annotation(a.path, a.size, a.labels[:1], a.bboxes[:1])
                                                           for a in anns], ['a', 'b'], **kw),
    'segmentation':   lambda anns, **kw: segmentation_dls([Annotation(a.path, a.size, mask=a.mask) for a in anns],
                                                          ['x', 'y', 'z'], **kw),
    'detection':      lambda anns, **kw: detection_dls(boxed(anns), ['a', 'b'], **kw),
    'instance':       lambda anns, **kw: instance_dls(anns, ['a', 'b'], **kw)}

def make(name, anns, size=64, workers=0, **kw):
    return TASKS[name](anns, size=size, bs=len(anns), splitter=ALL, num_workers=workers, device='cpu', **kw)

def batch(dl, seed=0):
    for f in (random.seed, np.random.seed, torch.manual_seed): f(seed)
    return [o.as_subclass(Tensor).float() for o in dl.new(shuffle=False, drop_last=False).one_batch()]

def cache_of(dls):
    return next(f for f in dls.train.dataset.tls[0].tfms.fs if isinstance(f, FileImageEncode)).cache

@pytest.fixture(params=['ram', 'folder'])
def where(request, tmp_path): return 'ram' if request.param == 'ram' else tmp_path/'cache'

@pytest.mark.parametrize('task', TASKS)
def test_batches_from_a_cache_equal_those_of_the_files(task, where, photos):
    plain,dls = make(task, photos),make(task, photos, cache=where)
    for one,other in ((plain.train, dls.train), (plain.valid, dls.valid)):
        for seed in range(4):   # the first fills it
            want,got = batch(one, seed),batch(other, seed)
            diff = (want[0] - got[0]).abs()*255
            assert diff.mean() < .7, "one grey level on average"
            assert diff.max() < 16
            if task == 'segmentation': continue   # below
            for a,b in zip(want[1:], got[1:]):
                assert torch.equal(a.nan_to_num(-9), b.nan_to_num(-9)), "labels, boxes, points and masks are exact"
    assert cache_of(dls).store.filled() == len(cache_of(dls).at)

@pytest.mark.parametrize('task', TASKS)
def test_images_that_are_not_reduced_come_to_the_same_bit(task, where, photos):
    some = [photos[2], photos[5]]
    plain,dls = make(task, some),make(task, some, cache=where)
    for one,other in ((plain.train, dls.train), (plain.valid, dls.valid)):
        for seed in range(3):
            for a,b in zip(batch(one, seed), batch(other, seed)): assert torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))

def test_files_are_decoded_once(where, photos, monkeypatch):
    dls,n = make('segmentation', photos, cache=where),[]
    pixels = FileImage.pixels
    monkeypatch.setattr(FileImage, 'pixels', lambda self, *a: (n.append(1), pixels(self, *a))[1])
    for _ in range(3): batch(dls.train)
    assert len(n) == len(photos)
    for _ in range(3): batch(dls.valid)
    assert len(n) == len(photos)

@pytest.mark.parametrize('task,joint', [
    ('multilabel', JointTransform(64, 'pad', FitView('pad', zoom=3.))),
    ('segmentation', JointTransform(64, 'squish', FitView('crop', zoom=2.))),
    ('detection', JointTransform(64, 'pad', 'pad', mosaic=1., mosaic_scale=(2., 3.)))])
def test_views_that_zoom_in_and_mosaics_are_served_from_the_cache(task, joint, where, photos, monkeypatch):
    some = [photos[3], photos[4]]
    assert all(stored_scale(joint, a.size) < 1 for a in some)
    dls,n = make(task, some, item_tfms=joint, cache=where),[]
    pixels = FileImage.pixels
    monkeypatch.setattr(FileImage, 'pixels', lambda self, *a: (n.append(1), pixels(self, *a))[1])
    for seed in range(6): batch(dls.train, seed), batch(dls.valid)
    assert len(n) == len(some)

def test_a_large_image_is_stored_at_the_size_that_the_views_need():
    assert stored_scale(JointTransform(64), (1000, 1000)) == pytest.approx(1.2*.064/.35**.5)
    assert stored_scale(JointTransform(64, 'pad', 'pad'), (1000, 500)) == pytest.approx(1.2*.064)
    def look(w, h, out, bboxes): return (0, 0, w, h),(0, 0, *out)
    for view,valid,size,scale in (('crop', 'squish', (1000, 500), .128),
                                  (JitterView((.5, 2.), 'pad'), 'pad', (1000, 500), .128),
                                  (IoUView(scale=(.5, 1.)), 'squish', (1000, 1000), .128),
                                  (ZoomOutView(other=JitterView((1., 3.))), 'squish', (1000, 1000), .192),
                                  (look, 'squish', (1000, 1000), 1.7*.064),
                                  (ZoomOutView(other=look), 'squish', (1000, 1000), 1.7*.064),
                                  ('pad', FitView('pad', zoom=2.), (1000, 500), .128),
                                  ('pad', FitView('squish', zoom=1.5), (1000, 1000), .096)):
        assert stored_scale(JointTransform(64, view, valid), size) == pytest.approx(1.2*scale)
    for p,scale in ((.5, 3*.064), (0., .064)):
        assert stored_scale(JointTransform(64, 'pad', 'pad', mosaic=p, mosaic_scale=(.4, 3.)),
                            (1000, 500)) == pytest.approx(1.2*scale)
    assert stored_scale(JointTransform(64), (100, 100)) == stored_scale(None, (9999, 9999)) == 1

@pytest.mark.parametrize('look', [CropView(), CropView((.1, .2), (.5, 2.)), JitterView(), IoUView(), FitView('crop'),
                                  FitView('pad', 2.), FitView('crop', 1.5), FitView('squish', 3.),
                                  JitterView((.6, 1.4), 'squish'), ZoomOutView(other=CropView((.2, 1.)))], ids=repr)
def test_views_name_the_largest_scale_at_which_they_show_an_image(look):
    seen,boxes = [],torch.tensor([[100., 100, 300, 200]])
    for _ in range(400):
        (x1,y1,x2,y2),(u1,v1,u2,v2) = look(640, 480, (96, 64), boxes)
        seen.append(((u2-u1)/(x2-x1), (v2-v1)/(y2-y1)))
    most = max(look.largest_scale(640, 480, (96, 64)))
    assert np.max(seen) <= most*1.5 and np.median(np.max(seen, 1)) <= most*1.05   # a crop may be narrower than a square

def test_a_view_that_zooms_in_beyond_the_stored_pixels_shows_those_of_the_file(photos, where):
    a = photos[4]
    def corner(w, h, out, bboxes): return (0, 0, 50, 40),(0, 0, *out)
    dls = make('multilabel', [a], item_tfms=JointTransform(64, corner, flip=0.), cache=where)
    plain = make('multilabel', [a], item_tfms=JointTransform(64, corner, flip=0.))
    assert stored_scale(JointTransform(64, corner), a.size) < 1
    for _ in range(2): assert torch.equal(batch(dls.train)[0], batch(plain.train)[0])

@pytest.mark.parametrize('exif', range(1, 9))
@pytest.mark.parametrize('size', [(900, 700), (901, 703), (80, 60)])
def test_a_photograph_with_an_orientation_is_stored_upright(exif, size, tmp_path, where):
    e = Image.Exif()
    e[0x0112] = exif
    photo(np.random.default_rng(1), *size).save(tmp_path/'a.jpg', exif=e, quality=95)
    a = Annotation(tmp_path/'a.jpg', size[::-1] if exif > 4 else size, ['a'])
    png = Annotation(tmp_path/'a.png', a.size, ['a'])
    FileImage.create(a.path).decode().save(png.path)
    x,y = batch(make('multilabel', [png]).valid)[0],batch(make('multilabel', [a], cache=where).valid)[0]
    assert ((x - y).abs()*255).mean() < 1

def test_deep_grey_values_are_stored_by_the_range_of_the_dls(tmp_path):
    Image.fromarray(np.linspace(0, 4095, 60*60).astype(np.uint16).reshape(60, 60)).save(tmp_path/'a.png')
    anns,got = [Annotation(tmp_path/'a.png', (60, 60), ['a'])],[]
    for grey in ((0, 4095), 'data', (0, 8190), (0, 4095)):
        set_grey_range(grey)
        try: got.append(batch(make('multilabel', anns, cache=tmp_path/'cache').valid)[0])
        finally: set_grey_range('dtype')
    assert torch.equal(got[0], got[3]) and got[0].mean() > got[2].mean() + .1

# --- class masks

def test_class_masks_that_are_not_reduced_are_exact_and_reduced_ones_differ_only_at_borders(photos, where):
    plain,dls = make('segmentation', photos),make('segmentation', photos, cache=where)
    for seed in range(3):
        a,b = batch(plain.train, seed)[1],batch(dls.train, seed)[1]
        for i,step in enumerate(cache_of(dls).steps[len(photos):]):
            differ = a[i] != b[i]
            if step == 1: assert not differ.any()
            near = F.max_pool2d(a[i][None], 3, 1, 1) != -F.max_pool2d(-a[i][None], 3, 1, 1)
            assert not (differ & ~near[0]).any() and differ.float().mean() < .05
    assert cache_of(dls).steps.max() > 1

def test_masks_of_colours_are_stored_by_their_table(tmp_path, where):
    (tmp_path/'x').mkdir(), (tmp_path/'y').mkdir()
    for i in range(3):
        photo(np.random.default_rng(i), 60, 60).save(tmp_path/f'x/{i}.png')
        m = np.random.default_rng(i).choice([[255, 0, 0], [0, 255, 0]], (60, 60)).astype(np.uint8)
        Image.fromarray(m).save(tmp_path/f'y/{i}.png')
    def read(codes, colours): return read_masks(tmp_path/'x', tmp_path/'y', codes, colors=colours)
    red,green = (255, 0, 0),(0, 255, 0)
    for names in (dict(zip((red, green), 'ab')), dict(zip((red, green), 'ba'))):
        anns = read(['a', 'b'], names)
        kw = dict(size=48, bs=3, splitter=ALL, num_workers=0, device='cpu')
        plain,dls = segmentation_dls(anns, ['a', 'b'], **kw),segmentation_dls(anns, ['a', 'b'], cache=where, **kw)
        for _ in range(2): assert torch.equal(batch(plain.valid)[1], batch(dls.valid)[1])

# --- processes

def test_workers_fill_the_cache_of_the_process_that_started_them(photos, where):
    dls = make('segmentation', photos, workers=2, cache=where)
    batch(dls.train)
    assert cache_of(dls).store.filled() == 2*len(photos)
    calm = make('segmentation', photos, workers=0, cache=where)
    assert all(torch.equal(a, b) for a,b in zip(batch(dls.valid), batch(calm.valid)))

SPAWN = '''
    import multiprocessing, sys, torch
    from pathlib import Path
    from vision_tasks.data.blocks import FileImageEncode
    from vision_tasks.data.synthetic import draw_shapes
    from vision_tasks.data.annotation import Annotation
    from vision_tasks.multilabel import multilabel_dls
    if __name__ == '__main__':
        multiprocessing.set_start_method('spawn')
        folder = Path(sys.argv[1])
        anns = [Annotation(a.path, a.size, a.labels) for a in draw_shapes(folder/'s', n=16, size=48)]
        dls = multilabel_dls(anns, size=48, bs=8, num_workers=1, device='cpu', cache=sys.argv[2])
        n = sum(len(b[0]) for b in dls.valid)
        cache = next(f for f in dls.train.dataset.tls[0].tfms.fs if isinstance(f, FileImageEncode)).cache
        print(cache.store.filled(), n)
    '''

@pytest.mark.parametrize('kind', ['ram', 'folder'])
def test_workers_that_are_spawned_share_the_cache_too(kind, tmp_path):
    (tmp_path/'run.py').write_text(textwrap.dedent(SPAWN))
    res = subprocess.run([sys.executable, 'run.py', str(tmp_path), kind if kind == 'ram' else str(tmp_path/'c')],
                         cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(Path(caches.__file__).parents[2])},
                         capture_output=True, text=True, timeout=300)
    assert res.returncode == 0, res.stderr
    filled,n = map(int, res.stdout.splitlines()[-1].split())
    assert filled == n > 0

def test_shared_bytes_without_anonymous_files_are_those_of_torch(monkeypatch, photos):
    monkeypatch.delattr(os, 'memfd_create', raising=False)
    dls = make('multilabel', photos, workers=1, cache='ram')
    batch(dls.valid)
    assert cache_of(dls).store.pixels.fd is None and cache_of(dls).store.filled() == len(photos)

# --- what changes

def test_a_file_that_changes_is_decoded_anew(photos, where):
    dls = make('multilabel', photos[:1], cache=where)
    old = batch(dls.valid)[0]
    s = os.stat(photos[0].path)
    Image.new('RGB', photos[0].size, 'red').save(photos[0].path)
    os.utime(photos[0].path, ns=(s.st_atime_ns, s.st_mtime_ns))   # even with the old time
    told = pytest.warns(UserWarning, match="changed since they were cached") if where == 'ram' else nullcontext()
    with told: new = batch(dls.valid)[0]
    assert (new[:,0] == 1).all() and (new[:,1:] == 0).all() and not torch.equal(old, new)

def test_a_folder_is_used_by_later_runs_and_for_files_that_were_only_touched(photos, tmp_path, monkeypatch):
    first = batch(make('multilabel', photos, cache=tmp_path/'c').valid)
    for a in photos: os.utime(a.path, (1, 1))
    monkeypatch.setattr(caches, 'reduced', None)
    assert all(torch.equal(a, b) for a,b in zip(first, batch(make('multilabel', photos, cache=tmp_path/'c').valid)))

def entries(folder): return sorted(f for f in folder.rglob('*') if f.is_file())

@pytest.mark.parametrize('harm', ['cut', 'empty', 'pixel', 'header', 'longer'])
def test_a_damaged_entry_is_made_again(harm, photos, tmp_path):
    want = batch(make('segmentation', photos, cache=tmp_path/'c').valid)
    for f in entries(tmp_path/'c'):
        b = bytearray(f.read_bytes())
        if harm == 'cut': b = b[:len(b)//2]
        if harm == 'empty': b = b''
        if harm == 'pixel': b[-5] ^= 8
        if harm == 'header': b[20] ^= 1
        if harm == 'longer': b += b'x'
        f.write_bytes(b)
    harmed = {f: f.read_bytes() for f in entries(tmp_path/'c')}
    assert all(torch.equal(a, b) for a,b in zip(want, batch(make('segmentation', photos, cache=tmp_path/'c').valid)))
    assert all(f.read_bytes() != b for f,b in harmed.items())

def test_settings_have_entries_of_their_own_and_runs_leave_no_temporary_files(photos, tmp_path):
    n = []
    for kw in (dict(), dict(), dict(size=80), dict(item_tfms=JointTransform(64, 'pad'))):
        batch(make('multilabel', photos[:1], cache=tmp_path/'c', **kw).valid)
        n.append(len(entries(tmp_path/'c')))
    assert n == [1, 1, 2, 3] and not list((tmp_path/'c').rglob('.*'))

def test_a_run_that_is_killed_while_it_fills_a_folder_leaves_whole_entries(photos, tmp_path):
    code = '''
        import sys, os, signal, pickle
        from vision_tasks.data import cache as c
        from vision_tasks.data.transforms import JointTransform
        anns = pickle.load(open(sys.argv[1], 'rb'))
        made = c.PixelCache(sys.argv[2], anns, JointTransform(64))
        replace = os.replace
        def dies(*args):
            if len(list(made.store.folder.rglob('[!.]*'))) > 4: os.kill(os.getpid(), signal.SIGKILL)
            replace(*args)
        os.replace = dies
        for a in anns: made.image(a)
        '''
    (tmp_path/'anns.pkl').write_bytes(pickle.dumps(photos))
    res = subprocess.run([sys.executable, '-c', textwrap.dedent(code), str(tmp_path/'anns.pkl'), str(tmp_path/'c')],
                         env=os.environ | {'PYTHONPATH': str(Path(caches.__file__).parents[2])}, timeout=300)
    assert res.returncode == -signal.SIGKILL
    part = list((tmp_path/'c').rglob('.*.part'))
    assert len(part) == 1 and len(entries(tmp_path/'c')) < len(photos) + 1
    os.utime(part[0], (1, 1))
    got = batch(make('multilabel', photos, cache=tmp_path/'c').valid)
    assert torch.equal(got[0], batch(make('multilabel', photos, cache=tmp_path/'d').valid)[0])
    assert not list((tmp_path/'c').rglob('.*.part'))

# --- bounds and errors

def test_memory_that_is_not_there_is_refused_before_it_is_filled(photos, monkeypatch, capsys):
    monkeypatch.setattr(caches, 'available_memory', lambda: 10**5)
    refused = r"cache='ram': 6 images take 0.00 GB, but 0.00 GB of memory are available.*folder"
    with pytest.raises(ValueError, match=refused):
        make('multilabel', photos, cache='ram')
    monkeypatch.setattr(caches, 'available_memory', lambda: 10**9)
    make('multilabel', photos, cache='ram')
    assert "cache: 6 images take 0.00 GB in memory" in capsys.readouterr().out
    monkeypatch.setenv('WORLD_SIZE', '10000')
    with pytest.raises(ValueError, match="in each of 10000 processes"): make('multilabel', photos, cache='ram')

def test_a_disk_without_room_is_refused(photos, monkeypatch, tmp_path):
    usage = type('Usage', (), dict(free=10**4))
    monkeypatch.setattr(caches.shutil, 'disk_usage', lambda o: usage)
    with pytest.raises(ValueError, match="6 images need 0.00 GB more, but the disk has 0.00 GB"):
        make('multilabel', photos, cache=tmp_path/'c')

def test_a_disk_that_fills_up_is_an_error_that_names_the_entry(photos, monkeypatch, tmp_path):
    dls = make('multilabel', photos, cache=tmp_path/'c')
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(caches.os, 'replace', full)
    with pytest.raises(OSError, match="the cache cannot be written .No space left on device.; make room"):
        batch(dls.valid)
    assert not list((tmp_path/'c').rglob('.*.part'))

def test_available_memory_is_that_of_this_machine(): assert 10**7 < available_memory() < 10**14

def test_an_annotation_of_another_size_raises_as_without_a_cache(photos, where):
    dls = make('detection', photos, cache=where)
    batch(dls.valid)
    wrong = replace(photos[0], size=(401, 300), masks=None, mask=None)
    for d in (dls, make('detection', photos)):
        with pytest.raises(AnnotationError, match="expected that of the image, 400x300, got 401x300"):
            d.test_dl([wrong], with_labels=True).one_batch()

def test_a_broken_file_raises_as_without_a_cache(photos, where):
    photos[0].path.write_bytes(photos[0].path.read_bytes()[:5000])
    for kw in ({}, dict(cache=where)):
        with pytest.raises(OSError, match="0.png cannot be read as an image"):   # fastai tries the first one itself
            batch(make('multilabel', photos[::-1], **kw).valid)

def test_a_missing_file_raises_as_without_a_cache(photos, where):
    dls = [make('multilabel', photos, **kw) for kw in ({}, dict(cache=where))]
    photos[0].path.unlink()
    for d in dls:
        with pytest.raises(FileNotFoundError, match="no such image file"): batch(d.valid)

# --- learners

def test_a_learner_exports_and_copies_without_its_cache(photos, where, tmp_path):
    dls = make('multilabel', photos, cache=where)
    learn = multilabel_learner(dls, 'test_resnet', pretrained=False, path=tmp_path)
    batch(dls.train)
    learn.export('a.pkl')
    plain = multilabel_learner(make('multilabel', photos), 'test_resnet', pretrained=False, path=tmp_path)
    plain.export('b.pkl')
    assert abs(os.path.getsize(tmp_path/'a.pkl') - os.path.getsize(tmp_path/'b.pkl')) < 1000
    got = load_learner(tmp_path/'a.pkl')
    assert cache_of(got.dls) is None and cache_of(dls) is not None
    files = [a.path for a in photos]
    assert [a.path for a in learn.annotate(files)] == [a.path for a in got.annotate(files)] == files
    assert pickle.loads(pickle.dumps(cache_of(dls))) is None and deepcopy(cache_of(dls)) is cache_of(dls)

def test_files_that_are_not_in_the_cache_are_read(photos, where, tmp_path):
    dls,plain = make('multilabel', photos[:2], cache=where),make('multilabel', photos[:2])
    others = [photos[3].path, Image.open(photos[3].path), photos[4].path.read_bytes(), photos[5]]
    x,y = (d.test_dl(others, rm_type_tfms=0).one_batch()[0] for d in (dls, plain))
    assert torch.equal(x, y)

def test_without_a_joint_transform_images_are_stored_whole(photos, where):
    kw = dict(item_tfms=Resize(64, method='squish'))
    plain,dls = make('segmentation', photos, **kw),make('segmentation', photos, cache=where, **kw)
    for _ in range(2): assert all(torch.equal(a, b) for a,b in zip(batch(plain.valid), batch(dls.valid)))

@pytest.mark.parametrize('bad', [3, True, ['ram'], '', b'ram'])
def test_what_is_neither_ram_nor_a_folder_is_refused(bad, photos):
    with pytest.raises(ValueError, match="cache: expected"): make('multilabel', photos, cache=bad)
