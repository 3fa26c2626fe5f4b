"Selective search against its definition, worked pixel by pixel; and what is kept of it"
import io, pickle, sys, time, zipfile
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
import numpy as np, pytest, torch
from PIL import Image
from torchvision.ops import box_iou, nms
import vision_tasks.ops.proposals as ops
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.image import read_image
from vision_tasks.data.proposals import Proposals
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.ops.masks import mask_bbox
from vision_tasks.ops.proposals import grid_proposals, proposal_recall, random_proposals, selective_search

def noise(h, w, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)

def regions(h=24, w=30, r=14, seed=0):
    "(h, w) labels of cells around random points"
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, [h, w], (r, 2))
    ys,xs = np.mgrid[:h, :w]
    labels = ((ys[...,None] - at[:,0])**2 + (xs[...,None] - at[:,1])**2).argmin(-1)
    return np.unique(labels, return_inverse=True)[1].reshape(h, w)

def check_boxes(b, size, n):
    assert b.dtype == np.float32 and b.ndim == 2 and b.shape[1] == 4 and len(b) <= n
    assert len(np.unique(b, axis=0)) == len(b)
    assert (b[:,:2] >= 0).all() and (b[:,2:] <= size).all() and (b[:,:2] < b[:,2:]).all()

# --- the definition

def touch(a, b):
    "Does a pixel of mask `a` have one of `b` above, below, left or right of it?"
    p = np.pad(a, 1)
    return ((p[2:,1:-1] | p[:-2,1:-1] | p[1:-1,2:] | p[1:-1,:-2]) & b).any()

def histogram(mask, bins, n):
    return np.concatenate([np.bincount(b[mask], minlength=n) for b in bins])/(mask.sum()*len(bins))

def by_definition(labels, features):
    "[(a, b)] of each union: all is found anew from the pixels each time, by the formulas of §3.2"
    masks,alive,unions = [labels == i for i in range(labels.max()+1)],list(range(labels.max()+1)),[]
    def alike(a, b):
        x1,y1,x2,y2 = mask_bbox(masks[a] | masks[b])
        size = 1 - (masks[a].sum() + masks[b].sum())/labels.size
        fill = 1 - ((x2-x1)*(y2-y1) - masks[a].sum() - masks[b].sum())/labels.size
        return size + fill + sum(np.minimum(*(histogram(masks[o], *f) for o in (a, b))).sum() for f in features)
    while len(alive) > 1:
        pairs = [(a, b) for a in alive for b in alive if a < b and touch(masks[a], masks[b])]
        a,b = max(pairs, key=lambda o: alike(*o))
        unions.append((a, b))
        masks.append(masks[a] | masks[b])
        alive = [o for o in alive if o not in (a, b)] + [len(masks)-1]
    return unions,masks

@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('texture_only', [False, True])
def test_regions_join_in_the_order_of_the_definition(seed, texture_only):
    labels,rng = regions(seed=seed),np.random.default_rng(seed)
    colour  = rng.integers(0, 6, (3, *labels.shape)) + labels%3
    texture = rng.integers(0, 4, (12, *labels.shape)) + labels%2
    sizes = ops._sizes(labels)
    features = [(texture, 5)] if texture_only else [(colour, 8), (texture, 5)]
    hists = np.concatenate([ops._histograms(labels, sizes, *f) for f in features], 1)
    frames,unions = ops._group(sizes, ops._frames(labels), hists, ops._neighbours(labels))
    want,masks = by_definition(labels, features)
    assert unions == want and len(unions) == len(sizes) - 1
    assert np.array_equal(frames, [mask_bbox(m) for m in masks])

def test_neighbours_are_those_that_touch_each_once():
    labels = regions(seed=7)
    r = labels.max() + 1
    want = [(a, b) for a in range(r) for b in range(a+1, r) if touch(labels == a, labels == b)]
    assert list(zip(*(o.tolist() for o in ops._neighbours(labels)))) == want

def test_histograms_of_regions_are_those_of_their_pixels():
    labels,bins = regions(),np.random.default_rng(0).integers(0, 5, (3, 24, 30))
    got = ops._histograms(labels, ops._sizes(labels), bins, 5)
    np.testing.assert_allclose(got, [histogram(labels == i, bins, 5) for i in range(len(got))], atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-6)

def test_slopes_of_a_ramp_are_its_steepness_along_each_direction():
    ramp = (np.mgrid[:20, :20][1]*.02 + np.mgrid[:20, :20][0]*.01).astype(np.float32)[...,None]
    np.testing.assert_allclose(ops._slopes(ramp)[10, 10], [.02, .01, .03*.5**.5, .01*.5**.5], rtol=1e-3)

def test_no_slope_is_steeper_than_the_bins_reach():
    im = (noise(60, 60) > 127).astype(np.float32)
    im[:, 30:] = 1
    im[:, :30] = 0
    top = np.abs(ops._slopes(im)).max()
    assert .9*ops.STEEP < top <= ops.STEEP

# --- boxes

def test_selective_search_finds_drawn_shapes(tmp_path):
    anns = [a for a in draw_shapes(tmp_path, n=8, size=96, seed=3) if len(a.bboxes)]
    found = [selective_search(read_image(a.path), n=300) for a in anns]
    for b,a in zip(found, anns): check_boxes(b, a.size, 300)
    got = proposal_recall(found, [a.bboxes for a in anns], iou=(.5, .7))
    chance = proposal_recall([random_proposals(a.size, 300) for a in anns], [a.bboxes for a in anns], iou=(.5, .7))
    assert got['recall50'] > .9 and got['recall70'] > .8 and got['recall70'] > chance['recall70'] + .2

def test_selective_search_finds_a_disc_to_the_pixel():
    ys,xs = np.mgrid[:100, :120]
    im = np.where(((ys-40)**2 + (xs-70)**2 <= 20**2)[...,None], [200, 30, 30], [20, 60, 200]).astype(np.uint8)
    best = box_iou(torch.tensor([[50., 20., 91., 61.]]), torch.from_numpy(selective_search(im, sigma=.1))).max()
    assert best == 1

@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (2, 2), (5, 700), (700, 5), (40, 61)], ids=str)
def test_images_of_any_size_have_boxes_inside(size):
    b = selective_search(noise(*size), n=50)
    check_boxes(b, size[::-1], 50)
    assert len(b)

def test_an_image_of_one_colour_has_its_frame_alone():
    for grey in (0, 255):
        assert selective_search(np.full((40, 51, 3), grey, np.uint8)).tolist() == [[0, 0, 51, 40]]

def test_the_same_image_gives_the_same_boxes_however_it_comes():
    im = noise(50, 60)
    want = selective_search(im)
    for o in (im.copy(), Image.fromarray(im), torch.from_numpy(im).permute(2, 0, 1)):
        assert np.array_equal(selective_search(o), want)
    grey = im[...,0]
    assert np.array_equal(selective_search(grey), selective_search(np.stack([grey]*3, 2)))
    assert np.array_equal(selective_search(Image.fromarray(grey)), selective_search(grey))

def test_fewer_boxes_are_the_first_of_more():
    im = noise(50, 60)
    assert np.array_equal(selective_search(im, n=20), selective_search(im, n=500)[:20])

def test_another_seed_is_another_order_of_the_same_boxes():
    im = noise(50, 60)
    a,b = (selective_search(im, n=10**6, seed=o) for o in (0, 1))
    assert not np.array_equal(a, b) and set(map(tuple, a)) == set(map(tuple, b))

@pytest.mark.parametrize('iou', [.5, .75, .9])
def test_boxes_like_a_better_one_come_after_all_others(iou):
    "torchvision's NMS removes the same boxes"
    im = noise(60, 80)
    plain = selective_search(im, n=10**6, nms=None)
    kept  = nms(torch.from_numpy(plain), torch.linspace(1, 0, len(plain)), iou).numpy()
    other = np.setdiff1d(np.arange(len(plain)), kept)
    assert len(kept) and len(other)
    assert np.array_equal(selective_search(im, n=10**6, nms=iou), plain[np.concatenate([kept, other])])
    n = len(kept)//2
    assert np.array_equal(selective_search(im, n=n, nms=iou), plain[kept[:n]])

def test_with_small_first_the_first_unions_come_before_the_last_ones():
    im = noise(60, 80)
    large,small = ([selective_search(im, n=10**6, seed=i, first=o) for i in range(5)] for o in ('large', 'small'))
    assert set(map(tuple, large[0])) == set(map(tuple, small[0]))
    whole = lambda found: np.mean([(b == [0, 0, 80, 60]).all(1).argmax() for b in found])   # the last union
    assert whole(large) < 5 and whole(small) > 10
    assert ops._places(4, 'large').tolist() == [4, 4, 4, 4, 3, 2, 1]     # four regions, then their unions
    assert ops._places(4, 'small').tolist() == [4, 4, 4, 4, 1, 2, 3]
    assert ops._places(1, 'large').tolist() == ops._places(1, 'small').tolist() == [1]

def test_a_wide_image_is_searched_small_and_answered_at_its_size():
    small = np.asarray(Image.fromarray(noise(10, 12)).resize((120, 100), Image.NEAREST))
    wide = small.repeat(4, 0).repeat(4, 1)   # which a box filter brings back exactly
    assert np.array_equal(selective_search(wide, width=120), selective_search(small)*4)
    check_boxes(selective_search(noise(20, 303), width=100), (303, 20), 2000)

def test_without_a_width_a_wide_image_is_searched_at_its_size():
    im = noise(20, 600)
    assert np.array_equal(selective_search(im, width=None), selective_search(im, width=600))
    assert not np.array_equal(selective_search(im, width=None), selective_search(im))

@pytest.mark.parametrize('size', [(1, 1), (1, 9), (3, 500), (640, 480)], ids=str)
@pytest.mark.parametrize('n', [1, 10, 200, 2000])
def test_random_and_grid_boxes_are_inside_and_as_many_as_there_are(size, n):
    for f in (random_proposals, grid_proposals):
        b = f(size, n)
        check_boxes(b, size, n)
        assert np.array_equal(b, f(size, n)) and np.array_equal(b, b.round())
        if size == (640, 480): assert len(b) >= .95*n
    if min(size) > 1: assert not np.array_equal(random_proposals(size, n, seed=0), random_proposals(size, n, seed=1))

def test_a_grid_misses_no_window_of_its_sizes():
    "Wherever an object of such a size is, a box of a dense grid overlaps it by half"
    b,rng = grid_proposals((200, 100), 5000),np.random.default_rng(0)
    side = (200*100)**.5/4
    at = rng.random((100, 2))*[200-side, 100-side]
    assert proposal_recall([b], [np.concatenate([at, at+side], 1)], iou=(.5,))['recall50'] == 1

# --- recall

def test_recall_is_that_of_torchvisions_iou_box_by_box():
    rng = np.random.default_rng(0)
    sets = []
    for k in (3, 40, 90, 0):
        o = np.sort(rng.random((k+5, 2, 2))*50, 1).reshape(-1, 4)
        sets.append((o[:k], o[k:] if k else o[:4]))
    ps,bs = zip(*sets)
    best = [max([0., *(box_iou(torch.tensor(b)[None], torch.tensor(q)[None]).item() for q in p[:30])])
            for p,bb in sets for b in bb]
    got = proposal_recall(ps, bs, iou=(.3, .5), n=30)
    share = lambda t: np.mean([o >= t for o in best])
    assert got == pytest.approx(dict(recall30=share(.3), recall50=share(.5), mean_best_overlap=np.mean(best)))
    assert 0 < got['recall50'] < got['recall30'] < 1

def test_recall_of_nothing_and_by_nothing():
    box = [[0., 0, 2, 2]]
    assert proposal_recall([[]], [box]) == dict(recall50=0, recall70=0, recall90=0, mean_best_overlap=0)
    assert all(np.isnan(o) for o in [*proposal_recall([box], [[]]).values(), *proposal_recall([], []).values()])
    assert proposal_recall([box, box], [box, np.empty((0, 4))])['recall90'] == 1
    assert proposal_recall([box], [[[1., 1, 1, 1]]])['mean_best_overlap'] == 0   # without area

def test_recall_tells_what_does_not_fit():
    with pytest.raises(ValueError, match="got proposals of 1 images, boxes of 2"): proposal_recall([[]], [[], []])
    with pytest.raises(ValueError, match=r"proposals, number 0: expected \(k, 4\) boxes, got \[\[1, 2, 3"):
        proposal_recall([[[1, 2, 3, 4, 5]]], [[]])

# --- what it says to bad input

@pytest.mark.parametrize('image,error', [
    (noise(8, 9).astype(np.uint16)*257,  r"type uint16, shape \(8, 9, 3\); expected uint8 in 0..255: divide 16 bits"),
    (noise(8, 9)/255,                    r"type float64.*multiply floats in 0..1 by 255"),
    (Image.fromarray(noise(8, 9)[...,0].astype(np.uint16)), "type uint16.*divide 16 bits by 257"),
    (noise(8, 9)[...,:2],                r"shape \(8, 9, 2\); expected an array \(h, w, 3\) or \(h, w\)"),
    (noise(8, 9).transpose(2, 0, 1),     r"shape \(3, 8, 9\); expected an array"),
    (torch.from_numpy(noise(8, 9)),      r"shape \(9, 3, 8\) \(h, w, c\); expected .* a tensor \(3, h, w\)"),
    (noise(0, 9),                        "of a pixel or more")])
def test_what_is_no_image_is_told(image, error):
    with pytest.raises(ValueError, match=error): selective_search(image)

def test_no_boxes_wanted_is_told():
    for f,o in ((selective_search, noise(8, 9)), (random_proposals, (8, 9)), (grid_proposals, (8, 9))):
        with pytest.raises(ValueError, match="n: expected a number of boxes from 1"): f(o, n=0)
    with pytest.raises(ValueError, match="n: expected a whole number of 1 or more, got 0"): Proposals(n=0)

def test_without_scikit_image_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'skimage.segmentation', None)
    with pytest.raises(ImportError, match=r"pip install scikit-image, or vision_tasks\[rcnn\]"):
        selective_search(noise(8, 9))

# --- what is kept

CALLS = []
def counted(image, n, shift=0):
    CALLS.append(image.shape)
    return (np.mgrid[:n, :4][1].astype(np.float32)*[1, 2, 3, 4] + image[0, 0, 0]/7 + shift)[:n]
def nothing(image, n): return []

@pytest.fixture
def calls():
    CALLS.clear()
    return CALLS

@pytest.fixture
def files(tmp_path):
    for i in range(5): Image.fromarray(noise(40, 50, i)).save(tmp_path/f'{i}.png')
    return sorted(tmp_path.glob('*.png'))

def test_a_function_that_cannot_go_to_other_processes_is_told(files):
    p = Proposals(lambda image, n: [[0, 0, 9, 9]], name='whole', workers=2)
    with pytest.raises(ValueError, match="method .*lambda.* cannot be sent to other processes.* or pass workers=0"):
        p.prepare(files)
    p.workers = 0
    assert p.prepare(files) == len(files)

def kept(folder): return sorted((folder/'.proposals').iterdir())

def test_an_image_is_searched_once(files, calls):
    p = Proposals(counted, n=6, name='counted')
    first = p(files[0])
    assert first.shape == (6, 4) and first.dtype == np.float32
    for o in (files[0], str(files[0]), Annotation(files[0], (50, 40))): assert np.array_equal(p(o), first)
    assert np.array_equal(Proposals(counted, n=6, shift=0, name='counted')(files[0]), first)   # as by default
    assert calls == [(40, 50, 3)] and len(kept(files[0].parent)) == 1

def test_other_parameters_and_another_image_are_searched_anew(files, calls):
    f = files[0]
    of = lambda **kw: Proposals(counted, **{**dict(n=6, name='counted'), **kw})
    first = of()(f)
    assert len(of(n=5)(f)) == 5 and np.allclose(of(shift=1)(f), first+1) and len(of(name='other')(f)) == 6
    assert len(calls) == 4
    before = f.read_bytes()
    f.write_bytes(files[1].read_bytes())
    assert not np.array_equal(of()(f), first) and len(calls) == 5
    f.write_bytes(before)
    assert np.array_equal(of()(f), first) and len(calls) == 5   # what was kept first is true again

def test_selective_search_is_kept_to_the_bit(files):
    kw = dict(n=70, width=33, scales=(5, 10))
    want = selective_search(read_image(files[0]), **kw)
    for _ in range(2): assert np.array_equal(Proposals(**kw)(files[0]), want)
    assert len(want) == 70 and (want != want.round()).any()
    assert np.array_equal(Proposals('random', n=70)(files[0]), random_proposals((50, 40), 70))
    assert np.array_equal(Proposals('grid', n=70)(files[0]), grid_proposals((50, 40), 70))

def flip(b, i): return b[:i] + bytes([b[i]^255]) + b[i+1:]

def of_other_boxes(b):
    np.savez(f := BytesIO(), bboxes=np.zeros((3, 5), np.float32))
    return f.getvalue()

@pytest.mark.parametrize('harm', [lambda b: b'', lambda b: b[:len(b)//2], lambda b: b[:-1], lambda b: b'rubbish',
                                  lambda b: flip(b, len(b)//3), of_other_boxes],
                         ids=['empty', 'half', 'without its end', 'rubbish', 'a changed byte', 'other arrays'])
def test_a_broken_file_is_made_anew_with_one_warning(files, calls, harm, recwarn):
    p = Proposals(counted, n=50, name='counted')
    first,(file,) = p(files[0]),kept(files[0].parent)
    file.write_bytes(harm(file.read_bytes()))
    for _ in range(2): assert np.array_equal(p(files[0]), first)   # the second time it is whole again
    assert len(calls) == 2
    warning, = recwarn
    assert "proposals are recomputed, because their cache file is broken" in str(warning.message)
    assert str(file) in str(warning.message) and warning.filename == __file__

@pytest.mark.filterwarnings('ignore:proposals are found anew')
def test_no_changed_byte_of_a_file_changes_a_box(files, calls):
    p = Proposals(counted, n=9, name='counted')
    first,(file,) = p(files[0]),kept(files[0].parent)
    whole = file.read_bytes()
    for i in range(0, len(whole), 3):
        file.write_bytes(flip(whole, i))
        assert np.array_equal(p(files[0]), first), i
    assert len(calls) > len(whole)/6   # some bytes say nothing, such as the time

def test_prepare_finds_what_is_missing_in_parallel(files):
    p = Proposals(n=30, workers=2)
    one = p(files[0])
    assert p.prepare(files, progress=False) == len(files)-1 and p.prepare(files, progress=False) == 0
    assert len(kept(files[0].parent)) == len(files) and np.array_equal(p(files[0]), one)
    for f in files: assert np.array_equal(p(f), selective_search(read_image(f), n=30))
    assert p.prepare([], progress=False) == 0

def test_prepare_warns_once_of_all_that_is_broken(files, recwarn):
    p = Proposals('grid', n=9, workers=0)
    p.prepare([Annotation(f, (50, 40)) for f in files])
    for f in kept(files[0].parent)[:3]: f.write_bytes(b'')
    assert p.prepare(files) == 3 and p.prepare(files) == 0
    assert len(recwarn) == 1 and ", and 2 more" in str(recwarn[0].message)

def test_a_process_that_starts_from_nothing_can_search(files):
    "As on macOS and Windows"
    p = Proposals(n=30)
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as ex: got = ex.submit(p, files[0]).result()
    assert np.array_equal(got, selective_search(read_image(files[0]), n=30))

def test_it_travels_with_a_learner(files, tmp_path):
    p = Proposals('random', n=9, cache=tmp_path/'kept', seed=3)
    q = pickle.loads(pickle.dumps(p))
    assert np.array_equal(q(files[0]), p(files[0])) and len(list((tmp_path/'kept').iterdir())) == 1

def test_an_image_without_proposals_is_legal(files):
    p = Proposals(nothing, name='nothing')
    for _ in range(2):
        b = p(files[0])
        assert b.shape == (0, 4) and b.dtype == np.float32

def test_boxes_are_those_of_the_image_as_shown(tmp_path):
    im = Image.fromarray(noise(30, 50))
    exif = im.getexif()
    exif[0x0112] = 6   # a quarter turn
    im.save(tmp_path/'turned.png', exif=exif)
    upright = read_image(tmp_path/'turned.png')
    assert upright.size == (30, 50)
    assert np.array_equal(Proposals(n=40)(tmp_path/'turned.png'), selective_search(upright, n=40))

def test_16_bit_files_are_searched_as_they_are_read(tmp_path):
    deep = noise(30, 50)[...,0].astype(np.uint16)*257
    Image.fromarray(deep).save(tmp_path/'deep.png')
    assert np.array_equal(Proposals(n=40)(tmp_path/'deep.png'), selective_search((deep//257).astype(np.uint8), n=40))

def test_pixels_are_kept_only_where_a_folder_is_named(files, calls, tmp_path):
    im = read_image(files[0])
    p,q = (Proposals(counted, n=4, name='counted', cache=c) for c in (None, tmp_path/'kept'))
    for o in (im, np.asarray(im)):
        for _ in range(2): assert np.array_equal(p(o), q(o))
    assert len(calls) == 5 and not (tmp_path/'.proposals').exists()

def test_what_cannot_be_written_leaves_nothing_behind_and_says_what_to_do(files, tmp_path, monkeypatch):
    (tmp_path/'a file').write_text('')
    with pytest.raises(OSError, match="cannot be cached in .*a file .*; pass cache=<a writable folder>"):
        Proposals('grid', cache=tmp_path/'a file', workers=0).prepare(files[:1], progress=False)
    def full(f, **kw): f.write(b'half of it'); raise OSError("No space left on device")
    monkeypatch.setattr(np, 'savez_compressed', full)
    with pytest.raises(OSError, match="No space left on device.*; pass cache="):
        Proposals('grid', workers=0).prepare(files[:1], progress=False)
    assert kept(tmp_path) == []

def test_an_image_that_cannot_be_read_is_named(files):
    files[2].write_bytes(files[2].read_bytes()[:300])
    for f in (lambda: Proposals('grid')(files[2]), lambda: Proposals('grid', workers=2).prepare(files, progress=False)):
        with pytest.raises(OSError, match="2.png cannot be read as an image"): f()
    with pytest.raises(FileNotFoundError, match="none.png"): Proposals()(files[0].parent/'none.png')
    with pytest.raises(ValueError, match="Annotation without a file"): Proposals()(Annotation(None, (5, 5)))

@pytest.mark.parametrize('kw,error', [
    (dict(method='edge_boxes'), "expected one of 'selective_search', 'random', 'grid', or a function, got 'edge_"),
    (dict(method=counted), "a function as method needs a name"), (dict(method='grid', n=-1), "got -1")])
def test_a_method_that_cannot_be_is_told(kw, error):
    with pytest.raises(ValueError, match=error): Proposals(**kw)

def test_a_parameter_that_the_method_lacks_is_told_at_once():
    for kw in (dict(sigmas=3), dict(method='random', width=3)):
        with pytest.raises(TypeError, match="unexpected keyword argument"): Proposals(**kw)

@pytest.mark.parametrize('bad', [[[0, 0, 5]], [[0, 0, 5, np.nan]], [[5, 0, 0, 5]]], ids=str)
def test_boxes_without_meaning_are_refused_and_not_kept(files, bad):
    with pytest.raises(ValueError, match="0.png: expected the method to return .*fix the method"):
        Proposals(lambda image, n: bad, name='bad')(files[0])
    assert not (files[0].parent/'.proposals').exists()

def test_an_image_beside_which_nothing_can_be_kept_has_proposals_and_one_warning_tells(files, tmp_path):
    (tmp_path/'a file').write_text('')
    p = Proposals('grid', n=20, cache=tmp_path/'a file')
    with pytest.warns(UserWarning, match="cannot be cached in .*a file .*; pass cache=") as said:
        one,again = p(files[0]),p(files[0])
    assert len(said) == 1 and len(one) and np.array_equal(one, again)

def test_a_file_that_would_inflate_to_gigabytes_is_broken_and_found_anew_at_once(files, tmp_path):
    p = Proposals('grid', n=9, cache=tmp_path/'kept')
    want = p(files[0])
    file, = (tmp_path/'kept').iterdir()
    for shape,mb in (((40_000_000, 4), 64), ((9, 4), 64), ((40_000_000, 4), 0), ((10, 4), 0), ((9, 5), 0)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, dict(descr='<f4', fortran_order=False, shape=shape))
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as z, z.open('bboxes.npy', 'w') as f:
            f.write(header.getvalue())
            for _ in range(mb): f.write(bytes(10**6))
            f.write(bytes(100))
        start = time.perf_counter()
        with pytest.warns(UserWarning, match="is broken"): found = p(files[0])
        assert np.array_equal(found, want) and time.perf_counter() - start < .2
        assert np.array_equal(p(files[0]), want)
