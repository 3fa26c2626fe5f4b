import subprocess, sys
from hashlib import sha256
import numpy as np, pytest
from fastai.torch_core import set_seed
from PIL import Image
from vision_tasks.data.annotation import vocab_of
from vision_tasks.data.synthetic import (FIGURE_FLIP_PAIRS, FIGURE_JOINTS, FIGURE_SKELETON, SHAPE_CODES,
                                         SHAPE_FLIP_PAIRS, SHAPE_POINTS, SHAPES, draw_figures, draw_shapes)
from vision_tasks.keypoint import keypoint_dls
from vision_tasks.ops.masks import decode_mask, mask_bbox

SIZES = [16, 64, (96, 40), (33, 71), 128]

def numbers(masks):
    "Masks whose polygons, (m, 2) arrays, are lists of numbers"
    return [m if isinstance(m, dict) else [p.ravel().tolist() for p in m] for m in masks]

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

def test_an_image_holds_as_many_objects_as_allowed(tmp_path):
    count = lambda **kw: {len(a.labels) for a in draw_shapes(tmp_path, 40, 96, **kw)}
    assert count() == {0, 1, 2, 3, 4} and count(most=1) == {0, 1} and max(count(most=9)) > 4
    assert set(vocab_of(draw_shapes(tmp_path, 12, most=1))) == set(SHAPES)

def test_boxes_are_the_tight_boxes_of_the_masks_and_lie_inside(drawn):
    for a in drawn[1]:
        assert len(a.bboxes) == len(a.labels) == len(a.masks) and a.bboxes.dtype == np.float32
        for b,m in zip(a.bboxes, a.masks): np.testing.assert_array_equal(b, mask_bbox(decode_mask(m, a.size)))
        tl,br = a.bboxes[:,:2],a.bboxes[:,2:]
        assert (tl >= 0).all() and (br <= a.size).all() and (br - tl >= 3).all()

def test_points_lie_inside_the_image_near_their_box_and_the_centre_on_the_object(drawn):
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

def test_some_images_are_empty_and_the_others_hold_one_to_four_objects(drawn):
    n = [len(a.labels) for a in drawn[1]]
    assert n.count(0) == 3 and max(n) <= 4 and (max(n) > 2 or min(drawn[0]) == 16)
    empty = next(a for a in drawn[1] if not a.labels)
    assert empty.bboxes.shape == (0, 4) and empty.points.shape == (0, len(SHAPE_POINTS), 2) and empty.masks == []
    assert not _pixels(empty.mask).any()

def test_objects_have_the_sizes_that_the_image_allows(tmp_path):
    "A side is .2 to .45 of the short side, turned by up to 20 degrees"
    sides = np.concatenate([(a.bboxes[:,2:] - a.bboxes[:,:2]).max(1) for a in draw_shapes(tmp_path, 40, (100, 160))])
    assert 16 < sides.min() < 30 and 40 < sides.max() < 60

@pytest.mark.parametrize('n', range(1, 10))
def test_four_images_or_more_have_an_empty_one_and_no_set_is_all_empty(n, tmp_path):
    for seed in range(3):
        empty = sum(not a.labels for a in draw_shapes(tmp_path, n, 24, seed))
        assert empty == 0 if n < 4 else empty == 1

def test_few_images_show_all_shapes_in_the_order_of_the_vocabulary(tmp_path):
    for seed in range(10): assert vocab_of(draw_shapes(tmp_path, 8, 32, seed)) == list(SHAPES)
    assert SHAPE_CODES == ('background', *SHAPES)
    assert [tuple(SHAPE_POINTS[i] for i in o) for o in SHAPE_FLIP_PAIRS] == [('left', 'right')]

def test_one_image_has_objects(tmp_path):
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
        assert x.labels == y.labels and numbers(x.masks) == numbers(y.masks)
        np.testing.assert_array_equal(x.points, y.points)

def test_another_seed_draws_other_images(tmp_path):
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

def test_a_tiny_image_holds_what_fits(tmp_path):
    anns = draw_shapes(tmp_path, 50, 16)
    assert {0, 1} <= {len(a.labels) for a in anns} <= {0, 1, 2} and sum(not a.labels for a in anns) == 6

@pytest.mark.parametrize('kw, message', [
    (dict(n=0),            "n: expected a whole number of 1 or more, got 0"),
    (dict(n=-3),           "n: expected a whole number of 1 or more, got -3"),
    (dict(most=0),         "most: expected a whole number of 1 or more, got 0"),
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

# --- stick figures

J = {o: i for i,o in enumerate(FIGURE_JOINTS)}
FIGURE_SIZES = [32, 96, (64, 120), (150, 70)]

@pytest.fixture(scope='module', params=FIGURE_SIZES, ids=str)
def figures(request, tmp_path_factory):
    size = (request.param,)*2 if isinstance(request.param, int) else request.param
    return size,draw_figures(tmp_path_factory.mktemp('figures'), 40, request.param, seed=1)

@pytest.fixture(scope='module')
def large(tmp_path_factory): return draw_figures(tmp_path_factory.mktemp('large'), 64, 128, seed=3)

def _lengths(points, *joints):
    "Length of the chain of `joints`; nan where one is not marked"
    p = np.array([points[J[o]] for o in joints], float)
    return np.hypot(*np.diff(p, axis=0).T)

def _shows_its_back(a):
    "Whether the middle of the head is as dark as hair: a face is skin"
    x,y = (.43*a.points[J['neck']] + .57*a.points[J['head_top']]).round().astype(int)
    return _pixels(a.path)[y-2:y+3,x-2:x+3].max(-1).mean() < 110

def test_figures_are_files_with_14_points_and_neither_boxes_nor_labels(figures):
    size,anns = figures
    assert [a.path.name for a in anns] == [f'{i:04d}.png' for i in range(40)]
    for a in anns:
        assert a.size == size == Image.open(a.path).size and Image.open(a.path).mode == 'RGB'
        assert a.points.shape == (14, 2) and a.visible.shape == (14,) and a.labels == [] and a.bboxes is None
        on = a.visible > 0
        np.testing.assert_array_equal(np.isnan(a.points[:,0]), ~on)
        assert (a.points[on] > 0).all() and (a.points[on] < size).all()

def test_joints_are_those_of_leeds_sports_pose_in_their_order_and_names_fit_together():
    assert FIGURE_JOINTS[:6] == tuple('right_ankle right_knee right_hip left_hip left_knee left_ankle'.split())
    assert FIGURE_JOINTS[6:] == tuple('right_wrist right_elbow right_shoulder left_shoulder left_elbow left_wrist '
                                      'neck head_top'.split())
    assert {o for p in FIGURE_FLIP_PAIRS for o in p} == set(FIGURE_JOINTS) - {'neck', 'head_top'}
    assert all(l.removeprefix('left_') == r.removeprefix('right_') for l,r in FIGURE_FLIP_PAIRS)
    assert {o for p in FIGURE_SKELETON for o in p} == set(FIGURE_JOINTS) and len(set(FIGURE_SKELETON)) == 14
    swap = {a: b for p in FIGURE_FLIP_PAIRS for a,b in (p, p[::-1])}
    mirrored = {frozenset(swap.get(o, o) for o in p) for p in FIGURE_SKELETON}
    assert mirrored == {frozenset(p) for p in FIGURE_SKELETON}

def test_the_left_side_is_as_long_as_the_right_and_all_figures_have_the_same_proportions(large):
    shares = []
    for a in large:
        if not a.visible.all(): continue
        left,right = (np.concatenate([_lengths(a.points, *(f'{s}_{o}' for o in chain)) for chain in
                      (('shoulder', 'elbow', 'wrist'), ('hip', 'knee', 'ankle'))] +
                      [_lengths(a.points, 'neck', f'{s}_shoulder')]) for s in ('left', 'right'))
        np.testing.assert_allclose(left, right, atol=.03)
        shares.append(left/_lengths(a.points, 'neck', 'head_top'))
    assert len(shares) == 56
    np.testing.assert_allclose(shares, [shares[0]]*56, atol=.01)

def test_every_figure_stands_upright_and_poses_differ(large):
    p = np.stack([a.points for a in large if a.visible.all()])
    assert (p[:,J['head_top'],1] < p[:,J['neck'],1]).all()
    assert (p[:,[J['left_hip'], J['right_hip']],1].max(1) < p[:,[J['left_ankle'], J['right_ankle']],1].min(1)).all()
    at = (p - p[:,[J['neck']]])/_lengths(p[0], 'neck', 'head_top')
    assert at[:,J['left_wrist']].std(0).min() > .3

def test_limbs_lie_where_the_joints_say_and_nothing_of_the_figure_elsewhere(large):
    "Along a bone between two joints that are seen pixels differ from the background; far from all bones they do not"
    on,off = [],[]
    for a in large:
        if not a.visible.all(): continue
        image,unit = _pixels(a.path).astype(float),_lengths(a.points, 'neck', 'head_top')[0]/.2
        ends = np.array([[a.points[J[o]] for o in p] for p in FIGURE_SKELETON])   # (14, 2, 2)
        t = np.linspace(.1, .9, 9)[:,None]
        bones = ends[:,:1]*(1 - t) + ends[:,1:]*t                                 # (14, 9, 2)
        yx = np.stack(np.mgrid[1:128:4,1:128:4], -1).reshape(-1, 2)
        far = np.hypot(*(yx[:,None,::-1] + .5 - bones.reshape(-1, 2)).transpose(2, 0, 1)).min(1)/unit
        ground = np.median(image[1::4,1::4].reshape(-1, 3)[far > .3], 0)
        differs = np.abs(image - ground).max(-1)
        seen = [a.visible[[J[o] for o in p]].min() == 2 for p in FIGURE_SKELETON]
        x,y = bones[seen].reshape(-1, 2).astype(int).T
        on.append(differs[y, x])
        off.append(differs[1::4,1::4].ravel()[far > .3])
    on,off = np.concatenate(on),np.concatenate(off)
    assert len(on) > 5000 and np.mean(on > 30) > .93 and np.mean(off > 60) < .02

def test_what_tells_left_from_right_is_the_side_that_is_seen_so_that_a_mirrored_figure_is_one_too(large):
    "Of a face the left shoulder is on the right; of a back on the left; mirrored and exchanged the rule still holds"
    backs = 0
    for a in large:
        if np.isnan(a.points[[J['neck'], J['head_top'], J['left_shoulder'], J['right_shoulder']]]).any(): continue
        back = _shows_its_back(a)
        backs += back
        assert (a.points[J['left_shoulder'],0] < a.points[J['right_shoulder'],0]) == back
        assert (a.points[J['left_hip'],0] < a.points[J['right_hip'],0]) == back or np.isnan(a.points).any()
    assert 12 <= backs <= 16

def test_left_and_right_have_the_same_colours(large):
    "Of thighs, which nothing but a bush covers, in images where the knees are seen"
    d = []
    for a in large:
        knees = [J[f'{s}_knee'] for s in ('left', 'right')]
        hips = [J[f'{s}_hip'] for s in ('left', 'right')]
        if (a.visible[knees + hips] < 2).any(): continue
        x,y = (.3*a.points[hips] + .7*a.points[knees]).astype(int).T
        d.append(np.abs(np.subtract(*_pixels(a.path)[y, x].astype(float))).max())
    assert len(d) > 30 and np.median(d) < 20

def test_all_three_visibilities_occur_at_their_rates(figures):
    v = np.stack([a.visible for a in figures[1]])
    assert ((v == 0).sum(1).tolist().count(1), (v == 0).sum()) == (5, 5)
    assert .25 < (v == 1).any(1).mean() < .75 and (v == 1).sum(1).max() <= 6

def test_a_hidden_joint_is_covered_by_something_else_than_its_limbs(large):
    "A bush is green and speckled; a hidden joint is under it, or under another limb, so its colours are not its own"
    green = []
    for a in large:
        for j in np.flatnonzero(a.visible == 1):
            x,y = a.points[j].astype(int)
            r,g,b = _pixels(a.path)[y,x].astype(int)
            green.append(g > r and g > b)
    assert len(green) >= 20 and np.mean(green) > .5

def test_four_figures_or_more_show_a_back_and_an_unmarked_joint(tmp_path):
    for n in (4, 5, 9):
        anns = draw_figures(tmp_path/str(n), n, 64)
        assert sum((a.visible == 0).any() for a in anns) == 1
        shoulders = [(a.points[J['left_shoulder'],0], a.points[J['right_shoulder'],0]) for a in anns]
        assert any(l < r for l,r in shoulders) and any(l > r for l,r in shoulders)

def test_the_same_arguments_draw_the_same_figures_and_another_seed_others(tmp_path):
    np.random.seed(0)
    a = draw_figures(tmp_path/'a', 6, (64, 48), seed=3)
    np.random.seed(1)
    b = draw_figures(tmp_path/'b', 6, (64, 48), seed=3)
    draw_figures(tmp_path/'c', 6, (64, 48), seed=4)
    one,same,other = (_digest(tmp_path/o) for o in 'abc')
    assert one == same and len(one) == 6 and not set(one.values()) & set(other.values())
    for x,y in zip(a, b):
        np.testing.assert_array_equal(x.points, y.points)
        np.testing.assert_array_equal(x.visible, y.visible)

@pytest.mark.parametrize('kw, message', [
    (dict(n=0),       "n: expected a whole number of 1 or more, got 0"),
    (dict(size=31),   "size: expected a whole number of pixels or two .*, each 32 or more, got 31"),
    (dict(size=(64, 16)), r"each 32 or more, got \(64, 16\)"),
    (dict(size='64'), "got '64'"),
])
def test_figures_of_sizes_and_numbers_without_meaning_are_refused_before_anything_is_written(kw, message, tmp_path):
    with pytest.raises(ValueError, match=message): draw_figures(tmp_path/'new', **kw)
    assert not (tmp_path/'new').exists()

def test_figures_go_through_the_keypoint_task_and_names_survive_mirroring(tmp_path):
    "In training views of figures that face us the left shoulder stays on the right, though half of them are mirrored"
    anns = draw_figures(tmp_path, 24, 64)
    front = [a for a in anns if a.points[J['left_shoulder'],0] > a.points[J['right_shoulder'],0]]
    for pairs,least,most in ((FIGURE_FLIP_PAIRS, 1, 1), ([], .1, .9)):
        set_seed(0)
        dls = keypoint_dls(front, FIGURE_JOINTS, size=64, bs=4, num_workers=0, device='cpu', flip_pairs=pairs,
                           skeleton=FIGURE_SKELETON)
        y = np.concatenate([y.numpy() for _ in range(4) for _,y in dls.train])
        share = (y[:,J['left_shoulder'],0] > y[:,J['right_shoulder'],0]).mean()
        assert least <= share <= most
