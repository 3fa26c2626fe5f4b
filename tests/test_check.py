import re, warnings
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from PIL import Image
from pycocotools import mask as coco
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.check import _is_sound, check_annotations, check_images, check_relative, difference_hash
from vision_tasks.data.drop import drop_problems
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.ops.masks import decode_mask, encode_rle, mask_bbox, mask_extent

NAN = float('nan')

@pytest.fixture
def good(shapes): return [replace(a, split='valid' if i % 4 == 0 else 'train') for i,a in enumerate(shapes[:8])]

def found(anns, vocab=None):
    df = check_annotations(anns, vocab)
    assert list(df.columns) == ['path', 'problem', 'detail']
    return list(zip(df.path, df.problem, df.detail))

def test_good_data_have_no_problem(good): assert found(good) == [] and isinstance(check_annotations(good), pd.DataFrame)

def test_each_problem_is_listed_with_its_file(good, tmp_path):
    half,other = tmp_path/'half.png',tmp_path/'copy.png'
    half.write_bytes(good[0].path.read_bytes()[:150]); other.write_bytes(good[1].path.read_bytes())
    Image.new('RGB', (40, 20)).save(tmp_path/'turned.jpg', exif=_exif(6))
    path,n = good[2].path,(64, 64)
    cases = [(Annotation(half, n), 'unreadable image', 'half.png'),
             (Annotation(tmp_path/'gone.jpg', n), 'unreadable image', 'gone.jpg'),
             (replace(good[2], size=(65, 64), mask=None, path=tmp_path/'x.png'), 'size differs',
              'is 65x64'),
             (Annotation(tmp_path/'turned.jpg', (40, 20)), 'size differs',
              'that of the file 20x40 as shown (40x20 as stored, before its EXIF orientation is applied)'),
             (Annotation(path, n, ['star'], bboxes=[[1, 1, 65, 2]]), 'box outside', 'box 0'),
             (Annotation(path, n, ['star'], bboxes=[[1, 1, 1, 2]]), 'box without area', 'box 0'),
             (Annotation(path, n, points=[[1, 2], [NAN, NAN], [3, 65]]), 'point outside', 'point 2: [3.0, 65.0]'),
             (Annotation(path, n, ['star'], bboxes=[[1, 1, 2, 2]], points=[[[-1, 2]]]), 'point outside',
              'point 0 of object 0'),
             (Annotation(path, n, ['heart']), 'unknown class', "'heart'"),
             (Annotation(path, n, ['']), 'empty label', "''"),
             (Annotation(path, n, mask=np.full((64, 64), 9, np.uint8)), 'mask value outside the codes',
              '9; there are 4 codes')]
    (tmp_path/'x.png').write_bytes(path.read_bytes())
    for a,problem,detail in cases:
        rows = found([a], ['circle', 'square', 'star', 'triangle'])
        assert [(r[0], r[1]) for r in rows] == [(a.path, problem)] and detail in rows[0][2], rows
    (p,problem,detail), = found([good[1], replace(good[1], path=other)])
    assert (p, problem) == (other, 'image twice')
    rows = found([replace(good[1], split='train'), replace(good[1], path=other, split='valid')])
    assert [r[1] for r in rows] == ['image twice', 'image on both sides of the split']
    rows = found([replace(a, group='ann', labels=[], bboxes=None, points=None, visible=None, masks=None)
                  for a in (good[0], good[1])])
    assert [r[1] for r in rows] == ['group on both sides of the split'] and "group 'ann'" in rows[0][2]

def test_masks_of_objects_are_looked_at(good):
    path,box = good[2].path,[[10, 20, 30, 60]]
    def of(mask, **kw): return [r[1:] for r in found([Annotation(path, (64, 64), ['star'], box, masks=[mask], **kw)])]
    swapped = [[20, 10, 60, 10, 60, 30, 20, 30]]
    assert of([[10, 20, 30, 20, 30, 60]]) == of([[8, 20, 30, 20, 30, 62]]) == []
    (problem,detail), = of(swapped)
    assert problem == 'mask outside box' and '[20.0, 10.0, 60.0, 30.0], the box is [10.0, 20.0, 30.0, 60.0]' in detail
    for m,why in (([[1, 2, 3, 4]], 'three or more points'), (dict(size=[64, 64], counts=[9]), r'h\*w = 4096')):
        (problem,detail), = of(m)
        assert problem == 'unreadable mask' and "mask 0, 'star'" in detail and re.search(why, detail)
    assert [r[0] for r in of([])] == ['empty mask'] and of([], ignore=[True]) == []

def _exif(o):
    e = Image.Exif(); e[0x0112] = o
    return e

def test_mask_files_are_read_as_indices(good):
    assert found(good, ['circle', 'square', 'star', 'triangle', 'background']) == []
    rows = found([a for a in good if 'triangle' in a.labels], ['circle', 'square', 'star', 'triangle'])
    assert {r[1] for r in rows} == {'mask value outside the codes'}

def problems(anns, vocab=None, **kw):
    "[(problem, number of the annotation, of the object)]"
    df = check_annotations(anns, vocab, **kw)
    return [(p, *i) for p,i in zip(df.problem, df.index)]

def test_rows_know_the_number_of_their_annotation_and_object(good):
    boxes = [[1, 1, 9, 9], [2, 2, 2, 9], [50, 1, 80, 9]]
    a = Annotation(good[1].path, (64, 64), ['star', 'moon', 'moon'], boxes)
    df = check_annotations([Annotation(good[0].path, (64, 64)), a], ['circle', 'square', 'star', 'triangle'])
    assert df.index.names == ['annotation', 'object'] and df.index.tolist() == [(1, 1), (1, 2), (1, 1)]
    assert df.problem.tolist() == ['box without area', 'box outside', 'unknown class']
    assert check_annotations(good).index.names == df.index.names

# --- boxes and points

def box(xyxy, path='a.png', size=(64, 48), **kw): return Annotation(path, size, ['a']*len(xyxy), bboxes=xyxy, **kw)

def test_a_set_of_boxes_or_points_within_0_and_1_is_relative():
    rel = [box([[.1, .2, .3, .9]], 'x.png'), box([[0, 0, 1, 1.005]]), box([])]
    with pytest.raises(AnnotationError, match=r"x.png: all 2 boxes lie within 0..1, the first is \[0.1.*, 0.2.*"
                       r"fractions of the image, .*multiply x by its width .*read_df\(..., relative=True"):
        check_relative(rel, 'bboxes')
    points = [Annotation('p.png', (64, 48), points=[[.2, .3], [NAN, NAN]])]
    with pytest.raises(AnnotationError, match=r"p.png: all 1 points lie within 0..1"): check_relative(points, 'points')
    check_relative(rel, 'points'); check_relative(points, 'bboxes'); check_relative([], 'bboxes')
    # one pixel anywhere is enough; unmarked points are none; on an image of one pixel they may be pixels
    for anns,field in (([*rel, box([[1, 1, 2, 2]])], 'bboxes'), ([box([[0, 0, 0, 0]])], 'bboxes'),
                       ([Annotation('p.png', (64, 48), points=[[.2, .3], [5, 3]])], 'points'),
                       ([Annotation('p.png', (64, 48), points=[[.2, .3]], visible=[0])], 'points'),
                       ([box([[0, 0, 1, 1]], size=(1, 1))], 'bboxes')): check_relative(anns, field)
    hidden = Annotation('p.png', (64, 48), points=[[.2, .3], [50, 30]], visible=[2, 0])
    with pytest.raises(AnnotationError, match="all 1 points"): check_relative([hidden], 'points')

def test_relative_coordinates_are_one_row_and_boxes_below_a_pixel_one_each(good):
    path = good[0].path
    rel = [Annotation(path, (64, 64), ['a', 'b'], [[.1, .2, .3, .9], [0, 0, 1, 1]], points=[[[.1, .2]], [[NAN, NAN]]])]
    df = check_annotations(rel)
    assert df.problem.tolist() == ['relative coordinates']*2 and df.index.tolist() == [(0, -1)]*2
    assert df.detail.str.contains('all 2 boxes').tolist() == [True, False] and 'all 1 points' in df.detail.iloc[1]
    small = [Annotation(path, (64, 64), ['a']*4, [[1, 1, 1.5, 9], [1, 1, 9, 1.9], [2, 2, 3, 3], [3, 3, 3, 9]])]
    assert problems(small) == [('box below a pixel', 0, 0), ('box below a pixel', 0, 1), ('box without area', 0, 3)]

def test_the_same_object_twice_is_a_row_and_a_like_one_is_none(good):
    path,b = good[0].path,[[2, 2, 20, 20]]*2
    def of(**kw): return problems([Annotation(path, (64, 64), **{**dict(labels=['a', 'a'], bboxes=b), **kw})])
    twice = [('object twice', 0, 1)]
    square = [[2, 2, 20, 2, 20, 20, 2, 20]]
    assert of() == of(points=[[[3, 3], [NAN, NAN]]]*2) == of(masks=[square, square[::-1]]) == twice
    assert of(masks=[square, encode_rle(decode_mask(square, (64, 64)))]) == twice
    assert of(labels=['a', 'b']) == of(bboxes=[b[0], [2, 2, 20, 21]]) == of(points=[[[3, 3]], [[3, 4]]]) == []
    assert of(masks=[square, [[2, 2, 20, 2, 20, 20]]]) == []
    assert of(labels=['a']*4, bboxes=b*2) == [('object twice', 0, i) for i in (1, 2, 3)]

# --- masks, without decoding them

def polygons_of_all_kinds(n, size, seed=0):
    "Stars, slivers, specks, outlines that meet themselves, several parts, some outside of the image"
    rng = np.random.default_rng(seed)
    for i in range(n):
        k,r = rng.integers(3, 30),np.exp(rng.uniform(np.log(.3), np.log(60)))
        a = np.sort(rng.uniform(0, 2*np.pi, k)) if i%3 else rng.uniform(0, 2*np.pi, k)
        p = rng.uniform(0, size, 2) + np.stack([np.cos(a)*r, np.sin(a)*r*(rng.uniform(.01, 1) if i%2 else 1)], 1)
        if i%5: p = p.clip(0, size)
        if i%7 == 0: p = np.concatenate([p, p])       # around twice, which leaves nothing inside
        parts = [p.round(2).ravel().tolist()]
        if i%4 == 0: parts.append((p*.5 + .25*np.array(size)).ravel().tolist())
        yield parts

def test_masks_that_vertices_judge_as_sound_have_pixels_of_which_half_the_extent_is_in_the_box():
    rng,size,sound = np.random.default_rng(1),(160, 120),0
    for m in polygons_of_all_kinds(4000, size):
        x1,y1,x2,y2 = mask_bbox(decode_mask(m, size)).tolist()
        shift = rng.normal(0, .4, 4)*[x2-x1, y2-y1, x2-x1, y2-y1]
        b = np.concatenate([np.sort([x1+shift[0], x2+shift[2]]), np.sort([y1+shift[1], y2+shift[3]])])[[0, 2, 1, 3]]
        if not _is_sound(m, size, b.tolist()): continue
        sound += 1
        inside = max(min(x2, b[2]) - max(x1, b[0]), 0)*max(min(y2, b[3]) - max(y1, b[1]), 0)
        assert x2 > x1 and 2*inside >= (x2-x1)*(y2-y1)
    assert sound > 200
    for m in ([], [[1, 1, 5, 5]], [[1, 1, 30, 1, 30, NAN]], [['x']*6], [[5, 5, 30, 5, 30, 30, 5, 30]*2]):
        assert not _is_sound(m, size, None)
    assert _is_sound([[5, 5, 30, 5, 30, 30, 5, 30]], size, None)

def test_the_extent_of_a_mask_is_that_of_its_pixels():
    size = (64, 48)
    for m in polygons_of_all_kinds(1500, size, 2):
        whole = decode_mask(m, size)
        want = mask_bbox(whole).tolist()
        rle = encode_rle(whole)
        assert all(mask_extent(o, size).tolist() == want for o in (m, rle, whole))
        if whole.any():
            x,y,w,h = coco.toBbox(rle).tolist()
            assert want == [x, y, x+w, y+h]

# --- classes

def test_a_class_without_training_images_is_a_row_where_the_split_is_given(good):
    def of(*anns, vocab=None):
        return [(path, detail) for path,what,detail in found(anns, vocab) if what == 'class without training images']
    train,valid = (lambda *labels, k=k, s=s: Annotation(good[k].path, (64, 64), [*labels], split=s)
                   for k,s in ((0, 'train'), (1, 'valid')))
    test = Annotation(good[2].path, (64, 64), ['c'], split='test')
    assert of(train('a'), valid('a', 'b'), test) == [(good[1].path, "'b': no image in train, 1 in valid"),
                                                     (good[2].path, "'c': no image in train, 1 in test")]
    assert of(train('a'), valid('a'), vocab=['a', 'z']) == [(None, "'z': no image in train, nor elsewhere")]
    assert of(train('a')) == of(valid('b')) == of(*(replace(o, split=None) for o in (train('a'), valid('b')))) == []
    mask = np.zeros((64, 64), np.uint8); mask[:9] = 1
    seg = [replace(train(), mask=mask*0), replace(valid(), mask=mask)]
    assert of(*seg, vocab=['ground', 'car']) == [(good[1].path, "'car': no image in train, 1 in valid")]
    assert of(replace(seg[0], mask=mask), seg[1], vocab=['ground', 'car']) == []

# --- images

def test_an_image_of_few_grey_levels_is_a_row(tmp_path):
    rng = np.random.default_rng(0)
    px = rng.integers(0, 4096, (40, 40)).astype(np.uint16)     # 12 bits in a file of 16
    Image.fromarray(px).save(tmp_path/'dark.png')
    Image.fromarray(px*16).save(tmp_path/'bright.png')
    Image.fromarray(rng.integers(0, 256, (400, 400, 3), np.uint8)//20*20).save(tmp_path/'p.png')
    Image.fromarray(rng.integers(0, 10, (400, 400, 3), np.uint8)).save(tmp_path/'dark.jpg', quality=95)
    Image.fromarray(rng.integers(0, 256, (400, 400, 3), np.uint8)).save(tmp_path/'bright.jpg')
    Image.fromarray(px[:9,:9]).save(tmp_path/'tiny.png')
    sizes = {p: Image.open(p).size for p in sorted(tmp_path.iterdir())}
    rows = found([Annotation(p, s) for p,s in sizes.items()])
    assert {p.name for p,*_ in rows} == {'dark.png', 'p.png', 'dark.jpg'}
    assert {o for _,o,_ in rows} == {'few grey levels'}
    assert [d for p,_,d in rows if p.name == 'p.png'] == ["13 of 256; does the file use all of its bits?"]

def test_near_duplicates_across_the_split_are_found_where_they_are_asked_for(tmp_path):
    anns = draw_shapes(tmp_path/'s', 24, (120, 90), seed=3)
    anns = [replace(a, split=('train', 'valid', 'test')[i%3], labels=[], bboxes=None, points=None, visible=None,
                    masks=None, mask=None) for i,a in enumerate(anns)]
    ims = [Image.open(a.path).convert('RGB') for a in anns]
    ims[1].resize((97, 73)).save(tmp_path/'small.jpg', quality=60)                      # of valid, again in train
    ims[2].point(lambda v: v*.8 + 20).save(tmp_path/'dim.png')                          # of test, again in valid
    ims[3].save(tmp_path/'same side.jpg')                                                # of train, again in train
    more = [Annotation(tmp_path/name, Image.open(tmp_path/name).size, split=split)
            for name,split in (('small.jpg', 'train'), ('dim.png', 'valid'), ('same side.jpg', 'train'))]
    assert problems(anns + more) == []
    rows = check_annotations(anns + more, near_duplicates=4)
    assert rows.index.tolist() == [(24, -1), (25, -1)] and set(rows.problem) == {'near-duplicate across the split'}
    assert re.search("^[0-4] of 64 bits differ from annotation 1 in valid, .*; it is in train", rows.detail.iloc[0])
    # the same bytes have rows of their own
    (tmp_path/'copy.png').write_bytes(anns[0].path.read_bytes())
    copy = replace(anns[0], path=tmp_path/'copy.png', split='valid')
    both = 'image on both sides of the split'
    assert problems(anns + [copy], near_duplicates=0) == [('image twice', 24, -1), (both, 0, -1)]
    with pytest.raises(ValueError, match="near_duplicates: expected a number of bits from 0 to 64, got 65"):
        check_annotations(anns, near_duplicates=65)

def test_the_difference_hash_is_that_of_its_definition_and_far_apart_for_other_images(tmp_path):
    rng = np.random.default_rng(0)
    v = rng.integers(0, 256, (8, 9), np.uint8)
    want = int(''.join('1' if v[i, j+1] > v[i, j] else '0' for i in range(8) for j in range(8)), 2)
    big = Image.fromarray(v.repeat(7, 0).repeat(5, 1)).convert('RGB')
    assert difference_hash(Image.fromarray(v)) == difference_hash(big) == want
    codes = [difference_hash(Image.open(a.path)) for a in draw_shapes(tmp_path, 30, 96)]
    assert min(bin(a ^ b).count('1') for i,a in enumerate(codes) for b in codes[:i]) > 8

# --- drop_problems

def broken(good, tmp_path):
    "Annotations with one of each problem, and what should be left of them: objects, or None"
    n = (64, 64)
    half = tmp_path/'half.png'
    half.write_bytes(good[0].path.read_bytes()[:150])
    def file(name, k):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path/name)
        return tmp_path/name
    square = [[2, 2, 20, 2, 20, 20, 2, 20]]
    boxes = [[2, 2, 20, 20], [5, 5, 5, 9], [1, 1, 1.5, 9], [2, 2, 20, 20], [30, 30, 40, 40], [50, 50, 70, 60]]
    with_masks = [[2, 2, 20, 20], [3, 3, 9, 9], [4, 4, 9, 9], [40, 40, 60, 60]]
    return [
        (Annotation(half, n), None), (Annotation(file('size.png', 1), (65, 64)), None),
        (Annotation(file('codes.png', 2), n, mask=np.full((64, 64), 77, np.uint8)), None),
        (Annotation(good[1].path, n), []), (Annotation(good[1].path, n), None),
        # without area, below a pixel, twice, unknown; the last reaches outside
        (Annotation(file('boxes.png', 3), n, ['star', 'star', 'star', 'star', 'moon', 'star'], boxes,
                    scores=[.1, .2, .3, .4, .5, .6]), [0, 5]),
        (Annotation(file('masks.png', 4), n, ['star']*4, with_masks, masks=[square, [[1, 1, 2, 2]], [], square]), [0]),
        (Annotation(file('labels.png', 5), n, ['moon', 'star', ' ']), [1])]

VOCAB = ['circle', 'square', 'star', 'triangle']

def test_what_cannot_be_trained_on_is_dropped_with_one_warning_that_counts(good, tmp_path):
    data = broken(good, tmp_path)
    anns = [a for a,_ in data]
    problems_ = check_annotations(anns, VOCAB)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        res = drop_problems(anns, problems_)
    (w,) = told
    text = str(w.message)
    assert text.startswith("4 of 8 annotations were dropped, and 9 objects of 3 others: ")
    for o in ("1 'unreadable image'", "1 'size differs'", "1 'image twice'", "1 'mask value outside the codes'",
              "1 'box without area'", "1 'box below a pixel'", "1 'object twice'", "2 'unknown class'",
              "1 'empty label'", "1 'unreadable mask'", "1 'empty mask'", "1 'mask outside box'",
              "; left as they are: 1 'box outside'"):
        assert o in text, o
    left = [(a, keep) for a,keep in data if keep is not None]
    assert len(res) == len(left) and res[0] is anns[3]
    for a,(b,keep) in zip(res[1:], left[1:]):
        assert a.path == b.path and a.labels == [b.labels[i] for i in keep]
        for k in ('bboxes', 'scores'):
            assert getattr(b, k) is None or np.array_equal(getattr(a, k), getattr(b, k)[keep])
        assert b.masks is None or a.masks == [b.masks[i] for i in keep]
    assert check_annotations(res, VOCAB).problem.tolist() == ['box outside']
    with pytest.warns(UserWarning, match="0 of 4 annotations were dropped, and 0 objects of 0 others; left"):
        again = drop_problems(res, check_annotations(res, VOCAB))
    assert all(a is b for a,b in zip(again, res, strict=True))

def test_some_rows_drop_what_they_name_and_no_row_drops_nothing(good, tmp_path):
    anns = [a for a,_ in broken(good, tmp_path)]
    df = check_annotations(anns, VOCAB)
    with pytest.warns(UserWarning, match="^1 of 8 annotations were dropped, and 0 objects of 0 others: 1 'unread"):
        assert [id(a) for a in drop_problems(anns, df[df.problem == 'unreadable image'])] == [id(a) for a in anns[1:]]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert drop_problems(good, check_annotations(good)) == good
    df.to_csv(tmp_path/'problems.csv')
    with pytest.warns(UserWarning, match="4 of 8 annotations were dropped, and 9 objects"):
        assert len(drop_problems(anns, pd.read_csv(tmp_path/'problems.csv'))) == 4

def test_near_duplicates_are_dropped_from_train_and_what_asks_for_a_decision_is_left(good, tmp_path):
    a = replace(good[1], split='train', group='g')
    Image.open(a.path).resize((50, 50)).save(tmp_path/'b.png')
    b = Annotation(tmp_path/'b.png', (50, 50), ['moon'], split='valid', group='g')
    df = check_annotations([a, b], near_duplicates=6)
    with pytest.warns(UserWarning, match="1 of 2 annotations .*left as they are: 1 'group on both sides of the split', "
                                         "1 'class without training images'"):
        assert drop_problems([a, b], df) == [b]

def test_problems_that_cannot_be_dropped_raise(good):
    rel = [Annotation(good[0].path, (64, 64), ['a'], [[.1, .2, .3, .9]])]
    with pytest.raises(AnnotationError, match="all 1 boxes lie within 0..1"): drop_problems(rel, check_annotations(rel))
    bad = [good[0], Annotation(good[1].path, (64, 64), [''])]
    df = check_annotations(bad)
    with pytest.raises(ValueError, match=r"row \(1, 0\) is about .*0001.png, which is not the path of annotations.1."):
        drop_problems(bad[::-1], df)
    with pytest.raises(ValueError, match="were found in another list"): drop_problems(bad[:1], df)
    with pytest.raises(ValueError, match="problems: expected rows of check_annotations"):
        drop_problems(bad, df.reset_index(drop=True))

def test_images_that_cannot_be_read_to_their_end_are_told_with_their_number(good, tmp_path):
    check_images(good)
    half = tmp_path/'half.png'
    half.write_bytes(good[0].path.read_bytes()[:-40])
    Image.new('RGB', (64, 64)).save(tmp_path/'black.png')
    with pytest.raises(AnnotationError, match=r"half.png cannot be read as an image .*"
                       r"\(2 of 11 images have such problems\); fix them, or drop them with drop_problems\("):
        check_images([*good, Annotation(tmp_path/'black.png', (64, 64)), Annotation(half, (64, 64)),
                      replace(good[1], size=(65, 64), mask=None)])
