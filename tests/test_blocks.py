import pickle
import numpy as np, pytest, torch
from fastai.vision.all import DataBlock, image2tensor
from PIL import Image
from vision_tasks.data.annotation import Annotation, AnnotationError
from vision_tasks.data.blocks import (AnnotationSplitter, FileImage, LabelSet, LabelSetEncode, StratifiedSplitter,
                                      check_labels, label_set, path_of, stratified_folds)

@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    px = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(px).save(tmp_path/'a.png')
    Image.fromarray(px).save(tmp_path/'a.jpg', quality=95)
    return tmp_path,px

def test_a_file_stays_closed_until_its_pixels_are_asked_for(files):
    path,px = files
    im = FileImage.create(path/'a.png')
    assert im.size == (40, 30) and im.mode == 'RGB' and not im.loaded
    assert np.array_equal(np.asarray(im), px) and im.loaded

@pytest.mark.parametrize('use', [
    lambda im: im.resize((5, 5)), lambda im: im.crop((0, 0, 5, 5)), lambda im: im.convert('L'), lambda im: im.copy(),
    image2tensor, lambda im: pickle.loads(pickle.dumps(im)), lambda im: im.getpixel((0, 0)),
    lambda im: im.transpose(Image.Transpose.ROTATE_90)])
def test_every_use_of_the_pixels_loads_them_and_equals_pillows(files, use):
    path,_ = files
    a,b = use(FileImage.create(path/'a.jpg')),use(Image.open(path/'a.jpg').convert('RGB'))
    assert np.array_equal(np.asarray(a), np.asarray(b))

def test_pixels_are_those_of_pillow_for_every_kind_of_file(files):
    path,px = files
    Image.fromarray(px).convert('L').save(path/'grey.jpg')
    Image.fromarray(px).convert('CMYK').save(path/'cmyk.jpg')
    Image.fromarray(px).convert('P').save(path/'p.png')
    for name in ('a.jpg', 'a.png', 'grey.jpg', 'cmyk.jpg', 'p.png'):
        want = torch.from_numpy(np.array(Image.open(path/name).convert('RGB'))).permute(2, 0, 1)
        assert torch.equal(FileImage.create(path/name).pixels(), want), name
        assert torch.equal(FileImage.create((path/name).read_bytes()).pixels((40, 30)), want), name

def test_pictures_come_as_paths_bytes_arrays_images_tensors_and_annotations(files):
    path,px = files
    t = torch.from_numpy(px).permute(2, 0, 1)
    file,a = path/'a.png',Annotation(path/'a.png', (40, 30))
    for o in (file, str(file), file.read_bytes(), px, Image.fromarray(px), t, a):
        assert np.array_equal(np.asarray(FileImage.create(o)), px), type(o)
    assert np.asarray(FileImage.create(px[...,0])).shape == (30, 40, 3)

def test_an_opened_image_is_not_changed(files):
    _,px = files
    im = Image.fromarray(px)
    ours = FileImage.create(im)
    ours.paste((0, 0, 0), (0, 0, 9, 9))
    assert type(im) is Image.Image and np.array_equal(np.asarray(im), px)

def test_what_is_no_picture_is_told(files):
    path,px = files
    (path/'half.jpg').write_bytes((path/'a.jpg').read_bytes()[:300])
    (path/'text.jpg').write_text('no picture')
    with pytest.raises(OSError, match=r"half.jpg cannot be read as an image .*replace the file"):
        FileImage.create(path/'half.jpg').pixels()
    with pytest.raises(OSError, match="half.jpg cannot be read"): FileImage.create(path/'half.jpg').load()
    with pytest.raises(OSError, match="text.jpg cannot be read"): FileImage.create(path/'text.jpg')
    with pytest.raises(FileNotFoundError, match="gone.jpg"): FileImage.create(path/'gone.jpg')
    with pytest.raises(ValueError, match="uint8 in 0..255, not float64"): FileImage.create(px/255)
    with pytest.raises(TypeError, match="a picture is a path, .* not int"): FileImage.create(3)

def test_labels_become_multi_hot_and_come_back():
    enc = LabelSetEncode(['a', 'b', 'c'])
    x = enc(['c', 'a'])
    assert type(x) is LabelSet and x.tolist() == [1, 0, 1] and list(enc.decode(x)) == ['a', 'c']
    assert enc([]).tolist() == [0, 0, 0] and list(enc.decode(enc([]))) == []

def test_label_set_and_path_of():
    a = Annotation('x.jpg', (4, 4), ['b', 'a', 'b'], bboxes=[[0, 0, 1, 1]]*3)
    assert label_set(a) == ['a', 'b'] and path_of(a).name == 'x.jpg' and path_of('y') == 'y'

def test_an_unknown_label_is_named_with_its_file_and_the_nearest_name():
    anns = [Annotation(f'{i}.jpg', (1, 1), [o]) for i,o in (('a', 'circle'), ('b', 'circel'), ('c', ''))]
    with pytest.raises(AnnotationError, match=r"b.jpg, row 1: label 'circel'.* \(2 pictures have such labels\); "
                                              r"did you mean 'circle'\?; mend"):
        check_labels(anns, ['circle'])
    with pytest.raises(AnnotationError, match="c.jpg, row 2: an empty label"): check_labels(anns, ['circle', 'circel'])
    check_labels(anns, ['circle', 'circel', ''])

# --- splits

def anns(n=40, **kw): return [Annotation(f'{i}.jpg', (1, 1), **{k: f(i) for k,f in kw.items()}) for i in range(n)]

def test_own_splits_are_kept_and_test_is_on_neither_side():
    a = anns(9, split=lambda i: ('train', 'valid', 'test')[i%3])
    assert AnnotationSplitter()(a) == ([0, 3, 6], [1, 4, 7])
    a = anns(10, split=lambda i: 'test' if i < 3 else None)
    tr,va = AnnotationSplitter()(a)
    assert sorted(tr+va) == list(range(3, 10))

def test_a_random_split_is_seeded_has_its_share_and_keeps_groups_and_files_whole():
    a = anns(100, group=lambda i: f'person {i//7}' if i < 70 else None)
    a += a[70:80]                                  # the same files once more
    tr,va = AnnotationSplitter(.25, seed=1)(a)
    assert (tr, va) == AnnotationSplitter(.25, seed=1)(a) and va != AnnotationSplitter(.25, seed=2)(a)[1]
    assert sorted(tr+va) == list(range(110)) and 20 <= len(va) <= 35
    assert not {a[i].group for i in tr if a[i].group} & {a[i].group for i in va}
    assert not {a[i].path for i in tr} & {a[i].path for i in va}

def test_splits_that_cannot_be_made_are_told():
    with pytest.raises(AnnotationError, match="the data set is empty"): AnnotationSplitter()([])
    with pytest.raises(AnnotationError, match=r"1 picture\(s\) in 1 group\(s\) cannot be split"):
        AnnotationSplitter()(anns(1))
    with pytest.raises(AnnotationError, match=r"5 picture\(s\) in 1 group\(s\) cannot be split"):
        AnnotationSplitter()(anns(5, group=lambda i: 'one'))
    with pytest.raises(AnnotationError, match="all 4 annotations are marked 'train', none 'valid'"):
        AnnotationSplitter()(anns(4, split=lambda i: 'train'))
    with pytest.raises(AnnotationError, match="1 of 4 annotations have no split, the first is 2.jpg"):
        AnnotationSplitter()(anns(4, split=lambda i: ('train', 'valid', None, 'train')[i]))

def long_tail(n=200, c=12, seed=0):
    rng = np.random.default_rng(seed)
    return anns(n, labels=lambda i: [f'l{j:02}' for j in range(c) if rng.random() < .6/(j+1)**1.3])

@pytest.mark.parametrize('seed', range(5))
def test_a_stratified_split_shows_every_label_that_has_two_pictures_on_both_sides(seed):
    a = long_tail(seed=seed) + anns(2, labels=lambda i: ['rare'])[:2]
    a[-1],a[-2] = (Annotation(f'r{i}.jpg', (1, 1), ['rare']) for i in range(2))
    tr,va = StratifiedSplitter(.2, seed)(a)
    count = lambda idxs, o: sum(o in a[i].labels for i in idxs)
    assert sorted(tr+va) == list(range(len(a))) and abs(len(va)-.2*len(a)) <= 8
    for o in sorted({o for x in a for o in x.labels}):
        n = count(tr, o)+count(va, o)
        if n >= 2: assert count(va, o) >= 1 and count(tr, o) >= 1, o
        assert abs(count(va, o)-.2*n) <= max(3, .1*n), o

def test_a_stratified_split_has_shares_nearer_to_the_whole_than_a_random_one():
    def off(splitter):
        d = 0
        for seed in range(5):
            a = long_tail(seed=seed); _,va = splitter(.2, seed)(a)
            for o in sorted({o for x in a for o in x.labels}):
                d += abs(sum(o in a[i].labels for i in va) - .2*sum(o in x.labels for x in a))
        return d
    assert off(StratifiedSplitter) < .5*off(AnnotationSplitter)

def test_stratified_folds_cover_all_keep_groups_and_balance_labels():
    a = [Annotation(x.path, x.size, x.labels, group=str(i//2)) for i,x in enumerate(long_tail())]
    f = stratified_folds(a, 4)
    assert set(f) == {0, 1, 2, 3} and (f[::2] == f[1::2]).all() and np.ptp(np.bincount(f)) <= 8
    n = [sum('l00' in x.labels for x,k in zip(a, f) if k == j) for j in range(4)]
    assert max(n)-min(n) <= 6
    with pytest.raises(AnnotationError, match="3 files or groups cannot make 5 folds"): stratified_folds(anns(3), 5)

def test_splitters_are_what_fastais_data_block_takes():
    dsets = DataBlock(splitter=AnnotationSplitter(.5), get_x=path_of, get_y=label_set).datasets(anns(10))
    assert len(dsets.train) == len(dsets.valid) == 5
