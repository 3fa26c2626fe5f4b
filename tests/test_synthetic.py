import subprocess, sys
from hashlib import sha256
import numpy as np, pytest
from PIL import Image
from vision_tasks.data.annotation import vocab_of
from vision_tasks.data.synthetic import SHAPE_CODES, SHAPE_FLIP_PAIRS, SHAPE_POINTS, SHAPES, draw_shapes
from vision_tasks.ops.masks import decode_mask, mask_bbox

SIZES = [16, 64, (96, 40), (33, 71), 128]

def _pixels(path): return np.asarray(Image.open(path))
def _digest(path): return {p.relative_to(path): sha256(_pixels(p).tobytes()).digest() for p in path.rglob('*.png')}

@pytest.fixture(scope='module', params=SIZES, ids=str)
def drawn(request, tmp_path_factory):
    size = (request.param,)*2 if isinstance(request.param, int) else request.param
    return size,draw_shapes(tmp_path_factory.mktemp('shapes'), 24, request.param, seed=1)

def test_files_exist_and_have_the_size_that_the_annotations_tell(drawn):
    size,anns = drawn
    assert [a.path.name for a in anns] == [f'{i:04d}.png' for i in range(24)]
    for a in anns:
        assert a.size == size == Image.open(a.path).size == Image.open(a.mask).size and a.split is None
        assert Image.open(a.path).mode == 'RGB' and Image.open(a.mask).mode == 'P' and a.path != a.mask

def test_the_class_mask_is_the_union_of_the_object_masks_which_do_not_overlap(drawn):
    for a in drawn[1]:
        count,expected = np.zeros((2, *a.size[::-1]), int)
        for m,l in zip(a.masks, a.labels):
            m = decode_mask(m, a.size)
            count += m
            expected += m*SHAPE_CODES.index(l)
        assert count.max() == min(len(a.labels), 1)
        np.testing.assert_array_equal(_pixels(a.mask), expected)

def test_boxes_are_the_tight_boxes_of_the_masks_and_lie_inside(drawn):
    for a in drawn[1]:
        assert len(a.bboxes) == len(a.labels) == len(a.masks) and a.bboxes.dtype == np.float32
        for b,m in zip(a.bboxes, a.masks): np.testing.assert_array_equal(b, mask_bbox(decode_mask(m, a.size)))
        tl,br = a.bboxes[:,:2],a.bboxes[:,2:]
        assert (tl >= 0).all() and (br <= a.size).all() and (br - tl >= 3).all()

def test_points_lie_inside_the_picture_near_their_box_and_the_centre_on_the_object(drawn):
    for a in drawn[1]:
        assert a.points.shape == (len(a.labels), len(SHAPE_POINTS), 2)
        assert a.visible.shape == a.points.shape[:2] and (a.visible == 2).all()
        assert (a.points >= 0).all() and (a.points < a.size).all()
        b = a.bboxes[:,None]
        # a tip that is thinner than a pixel is not painted
        assert (a.points >= b[...,:2] - 2.5).all() and (a.points <= b[...,2:] + 2.5).all()
        for p,m in zip(a.points, a.masks):
            (cx,cy),(l,r,t,d) = p[0],p[1:]
            assert decode_mask(m, a.size)[int(cy),int(cx)]
            assert l[0] < cx < r[0] and t[1] < cy < d[1]

def test_points_turn_with_their_shape_by_up_to_twenty_degrees_and_keep_its_symmetry(drawn):
    turns = []
    for a in drawn[1]:
        for (c,l,r,t,b),label in zip(a.points, a.labels):
            across,down = r - l,b - t
            assert np.isclose(across@down/np.prod(np.hypot(*np.array([across, down]).T)), 0, atol=.01)
            assert np.isclose(np.hypot(*(l - c)), np.hypot(*(r - c)), atol=.02)
            turns.append((label, np.rad2deg(np.arctan2(across[1], across[0]))))
    assert max(abs(o) for _,o in turns) < 20.5 and max(abs(o) for _,o in turns) > 10
    assert all(abs(o) < .5 for label,o in turns if label == 'circle')

def test_object_pixels_differ_from_the_background_around_them(drawn):
    for a in drawn[1]:
        image,background = _pixels(a.path).astype(float),_pixels(a.mask) == 0
        for b,m in zip(a.bboxes.astype(int), a.masks):
            m,near = decode_mask(m, a.size),np.zeros_like(background)
            near[max(b[1]-2, 0):b[3]+2,max(b[0]-2, 0):b[2]+2] = True
            assert np.abs(image[m].mean(0) - image[near & background].mean(0)).max() > 20

def test_some_pictures_are_empty_and_the_others_hold_one_to_four_objects(drawn):
    n = [len(a.labels) for a in drawn[1]]
    assert n.count(0) == 3 and max(n) <= 4 and (max(n) > 2 or min(drawn[0]) == 16)
    empty = next(a for a in drawn[1] if not a.labels)
    assert empty.bboxes.shape == (0, 4) and empty.points.shape == (0, len(SHAPE_POINTS), 2) and empty.masks == []
    assert not _pixels(empty.mask).any()

def test_objects_have_the_sizes_that_the_picture_allows(tmp_path):
    "A side is .2 to .45 of the short side, turned by up to 20 degrees"
    sides = np.concatenate([(a.bboxes[:,2:] - a.bboxes[:,:2]).max(1) for a in draw_shapes(tmp_path, 40, (100, 160))])
    assert 16 < sides.min() < 30 and 40 < sides.max() < 60

@pytest.mark.parametrize('n', range(1, 10))
def test_four_pictures_or_more_have_an_empty_one_and_no_set_is_all_empty(n, tmp_path):
    for seed in range(3):
        empty = sum(not a.labels for a in draw_shapes(tmp_path, n, 24, seed))
        assert empty == 0 if n < 4 else empty == 1

def test_few_pictures_show_all_shapes_in_the_order_of_the_vocabulary(tmp_path):
    for seed in range(10): assert vocab_of(draw_shapes(tmp_path, 8, 32, seed)) == list(SHAPES)
    assert SHAPE_CODES == ('background', *SHAPES)
    assert [tuple(SHAPE_POINTS[i] for i in o) for o in SHAPE_FLIP_PAIRS] == [('left', 'right')]

def test_one_picture_has_objects(tmp_path):
    anns = draw_shapes(tmp_path, n=1)
    assert len(anns) == 1 and anns[0].labels and anns[0].size == (64, 64)

def test_the_same_arguments_draw_the_same_pixels_whatever_the_global_random_state(tmp_path):
    np.random.seed(0)
    a = draw_shapes(tmp_path/'a', 6, (40, 32), seed=3)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    b = draw_shapes(tmp_path/'b', 6, (40, 32), seed=3)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert _digest(tmp_path/'a') == _digest(tmp_path/'b') and len(_digest(tmp_path/'a')) == 12
    for x,y in zip(a, b):
        assert x.labels == y.labels and x.masks == y.masks
        np.testing.assert_array_equal(x.points, y.points)

def test_another_seed_draws_other_pictures(tmp_path):
    for seed in (0, 1): draw_shapes(tmp_path/str(seed), 4, 32, seed=seed)
    a,b = (_digest(tmp_path/str(seed)) for seed in (0, 1))
    assert a.keys() == b.keys() and not set(v for k,v in a.items() if k.parts[0] == 'images') & set(b.values())

def test_the_colour_tells_a_class_often_but_not_always(tmp_path):
    "Nearest of the classes' mean colours: well above chance, well below certain"
    anns = draw_shapes(tmp_path, 150, 32)
    x,y = zip(*[(_pixels(a.path)[decode_mask(m, a.size)][0], l) for a in anns for m,l in zip(a.masks, a.labels)])
    x,y = np.array(x, float),np.array([SHAPES.index(o) for o in y])
    means = np.stack([x[y == i].mean(0) for i in range(len(SHAPES))])
    right = (np.square(x[:,None] - means).sum(-1).argmin(1) == y).mean()
    assert .6 < right < .99

def test_a_tiny_picture_holds_what_fits(tmp_path):
    anns = draw_shapes(tmp_path, 50, 16)
    assert {0, 1} <= {len(a.labels) for a in anns} <= {0, 1, 2} and sum(not a.labels for a in anns) == 6

@pytest.mark.parametrize('kw, message', [
    (dict(n=0),            "n: expected 1 picture or more, got 0"),
    (dict(n=-3),           "n: expected 1 picture or more, got -3"),
    (dict(size=0),         "size: expected a whole number of pixels or two .*, each 16 or more, got 0"),
    (dict(size=15),        "each 16 or more, got 15"),
    (dict(size=(64, -64)), r"each 16 or more, got \(64, -64\)"),
    (dict(size=64.5),      "got 64.5"),
    (dict(size='64'),      "got '64'"),
    (dict(size=None),      "got None"),
    (dict(size=(64, 64, 3)), r"got \(64, 64, 3\)"),
])
def test_sizes_and_numbers_without_meaning_are_refused_before_anything_is_written(kw, message, tmp_path):
    with pytest.raises(ValueError, match=message): draw_shapes(tmp_path/'new', **kw)
    assert not (tmp_path/'new').exists()

def test_drawing_needs_neither_torch_nor_fastai(tmp_path):
    code = ("import sys; from vision_tasks.data.synthetic import draw_shapes; draw_shapes(sys.argv[1], 2); "
            "sys.exit(any(m in sys.modules for m in ('torch', 'fastai')))")
    assert subprocess.run([sys.executable, '-c', code, str(tmp_path)]).returncode == 0
    assert len(list((tmp_path/'images').iterdir())) == 2
