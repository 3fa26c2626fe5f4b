import copy, pickle
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.class_masks import MaskFile, MaskTable, decode_class_mask
from vision_tasks.data.errors import AnnotationError
from vision_tasks.ops.masks import decode_mask, encode_rle

NAN = float('nan')
def ann(**kw): return Annotation(**{**dict(path='a.jpg', size=(20, 10)), **kw})

def test_arrays_are_copied_and_cast_and_the_type_is_frozen():
    b = np.array([[1, 2, 3, 4]])
    a = ann(labels=('x',), bboxes=b, points=[[[1, 2], [NAN, NAN]]], visible=[[2, 0]], ignore=[1], scores=[.5],
            size=np.array([20, 10]))
    b[0, 0] = 9
    assert a.bboxes.dtype == np.float32 and a.bboxes.tolist() == [[1, 2, 3, 4]] and a.labels == ['x']
    assert a.size == (20, 10) and a.path.name == 'a.jpg'
    assert a.visible.dtype == np.uint8 and a.ignore.dtype == bool and a.points.shape == (1, 2, 2)
    with pytest.raises(AttributeError): a.labels = []
    assert replace(a, split='valid').split == 'valid'
    assert pickle.loads(pickle.dumps(a)).bboxes.tolist() == a.bboxes.tolist()
    assert 'bboxes=(1, 4)' in repr(a) and '20x10' in repr(a)

def test_nothing_annotated_and_nothing_there_are_different():
    assert ann().bboxes is None and ann(bboxes=[]).bboxes.shape == (0, 4)
    assert ann(bboxes=[], points=[]).points.shape == (0, 0, 2) and ann(bboxes=np.zeros((0, 4)), masks=[]).masks == []

def test_boxes_without_area_or_outside_the_image_are_legal():
    assert ann(labels=['x', 'y'], bboxes=[[5, 5, 5, 5], [-3, 0, 40, 10]]).bboxes.shape == (2, 4)

@pytest.mark.parametrize('kw,message', [
    (dict(labels='cat'), r"a.jpg, labels: expected a list of names, got 'cat'; write \['cat'\]"),
    (dict(labels=['a', 3]), r"a.jpg, labels, row 1: expected a class name .* got 3 of type int"),
    (dict(size=(0, 5)), r"size: expected \(w, h\) as two positive whole numbers of pixels, got \(0, 5\)"),
    (dict(size=7), "size: expected"), (dict(size=(1.5, 2)), "size: expected"),
    (dict(bboxes=[[1, 2, 3, 4]]), "labels: expected one label for each of the 1 boxes, got 0 labels"),
    (dict(labels=['a'], bboxes=[[1, 2, 3]]),
     r"bboxes: expected \(n, 4\) numbers x1 y1 x2 y2 in pixels, got an array of shape \(1, 3\)"),
    (dict(labels=['a'], bboxes=[['p', 2, 3, 4]]), "bboxes: expected"),
    (dict(labels=['a', 'b'], bboxes=[[1, 2, 3, 4], [5, 2, 3, 4]]),
     r"bboxes, row 1: expected x1 <= x2 and y1 <= y2, got \[5.0, 2.0, 3.0, 4.0\]; fix the box"),
    (dict(labels=['a'], bboxes=[[1, 2, NAN, 4]]), "bboxes, row 0: expected finite numbers"),
    (dict(points=[1, 2]), r"points: expected \(k, 2\)"),
    (dict(labels=['a'], bboxes=[[1, 2, 3, 4]], points=[[1, 2]]), r"points: expected \(n, k, 2\)"),
    (dict(points=[[1, NAN]]), r"points, row \(0,\): expected finite x and y, or nan twice"),
    (dict(points=[[1, np.inf]]), "points, row"),
    (dict(visible=[1]), "visible: expected points beside it"),
    (dict(points=[[1, 2]], visible=[3]), r"visible, row \(0,\): expected 0 not marked, 1 hidden or 2 visible"),
    (dict(points=[[NAN, NAN]], visible=[2]), "and 0 where the point is nan, got 2 at"),
    (dict(points=[[1, 2]], visible=[1, 1]), "visible: expected"),
    (dict(masks=[[[1, 1, 2, 2, 3, 3]]]), "masks: expected bboxes beside them"),
    (dict(bboxes=[], masks=[1]), "masks: expected one mask for each of the 0 boxes, got 1"),
    (dict(labels=['a'], bboxes=[[1, 2, 3, 4]], masks=[np.zeros((20, 10), bool)]),
     r"masks, row 0: expected \(h, w\) = \(10, 20\), the size of the image, got"),
    (dict(mask=np.zeros((20, 10), int)), r"mask: expected \(h, w\) = \(10, 20\) class indices"),
    (dict(mask=np.zeros((10, 20))), "class indices that are whole numbers"),
    (dict(ignore=[True]), "ignore: expected bboxes"),
    (dict(labels=['a'], scores=[1.5]), r"scores, row 0: expected a number in \[0, 1\], got 1.5"),
    (dict(labels=['a'], scores=[NAN]), "scores, row 0"),
    (dict(labels=['a'], scores=[.1, .2]), r"scores: expected \(1,\) numbers, one per label"),
    (dict(split='dev'), r"split: expected one of \('train', 'valid', 'test'\) or None, got 'dev'")])
def test_what_has_no_meaning_is_refused_with_file_field_and_row(kw, message):
    with pytest.raises(AnnotationError, match=message): ann(**kw)

def test_vocab_is_sorted_whatever_the_order():
    anns = [ann(labels=['b', 'a']), ann(labels=['c']), ann()]
    assert vocab_of(anns) == vocab_of(anns[::-1]) == ['a', 'b', 'c']

@pytest.mark.parametrize('size', [None, 64, 'ab'])
def test_an_rle_whose_size_is_no_size_is_refused_with_its_file_and_row(size):
    with pytest.raises(AnnotationError, match=r"a.png, masks, row 0: expected .*\[h, w\]"):
        Annotation('a.png', (4, 4), ['x'], [[0, 0, 1, 1]], masks=[dict(size=size, counts=[16])])

SQUARE = [1., 1., 5., 1., 5., 5., 1., 5.]

def filled(**kw):
    "An annotation with every field that holds arrays"
    mask = np.zeros((10, 20), bool); mask[2:6, 3:9] = True
    return ann(**{**dict(labels=['x', 'y', 'z'], bboxes=[[1, 1, 5, 5], [3, 2, 9, 6], [0, 0, 2, 2]],
                         points=[[[1, 2], [NAN, NAN]]]*3, visible=[[2, 0]]*3, ignore=[1, 0, 0], scores=[.5, .25, 1],
                         masks=[[np.array(SQUARE), SQUARE], mask, dict(size=[10, 20], counts=np.array([0, 4, 196]))],
                         mask=np.ones((10, 20), np.uint8), group='g', split='valid'), **kw})

def arrays(a):
    "{field: array} of all arrays in `a`, those in masks too"
    res = {k: v for k,v in vars(a).items() if isinstance(v, np.ndarray)}
    return {**res, 'polygon': a.masks[0][0], 'mask of an object': a.masks[1], 'counts': a.masks[2]['counts']}

@pytest.mark.parametrize('how', [lambda a: a, replace, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))],
                         ids=['new', 'replaced', 'copied', 'unpickled'])
def test_every_array_of_an_annotation_is_read_only(how):
    found = arrays(how(filled()))
    assert len(found) == 9
    for k,v in found.items():
        assert not v.flags.writeable, k
        with pytest.raises(ValueError, match='read-only'): v.flat[0] = 1

def test_arrays_of_the_caller_stay_writable():
    mine = dict(bboxes=np.float32([[1, 1, 5, 5]]), points=np.zeros((1, 1, 2), np.float32), scores=np.float32([.5]),
                visible=np.uint8([[0]]), ignore=np.array([True]), mask=np.zeros((10, 20), np.uint8))
    polygon,mask,counts = np.array(SQUARE),np.zeros((10, 20), bool),np.array([200])
    polygons,rle = [polygon],dict(size=[10, 20], counts=counts)
    ann(labels=['x'], **mine, masks=[polygons])
    for m in (mask, rle): ann(labels=['x'], bboxes=mine['bboxes'], masks=[m])
    assert polygons[0] is polygon and rle['counts'] is counts
    for v in (*mine.values(), polygon, mask, counts): v.flat[0] = 0

def test_a_decoded_mask_may_be_written_to():
    a = filled()
    for m in (decode_class_mask(a.mask), decode_mask(a.masks[1], a.size)):
        m[0, 0] = 1 - m[0, 0]
    assert a.mask[0, 0] == 1 and not a.masks[1][0, 0]

def test_an_annotation_is_the_same_as_itself_as_a_copy_and_as_unpickled():
    a = filled()
    assert a.same_as(a) and a.same_as(filled()) and a.same_as(pickle.loads(pickle.dumps(a))) and ann().same_as(ann())

@pytest.mark.parametrize('kw', [
    dict(path='b.jpg'), dict(path=None), dict(labels=['x', 'z', 'y']),
    dict(bboxes=[[1, 1, 5, 5.5], [3, 2, 9, 6], [0, 0, 2, 2]]),
    dict(points=None, visible=None), dict(points=[[[1, 2]]]*3, visible=None), dict(points=[[[1, 2], [1, 2]]]*3),
    dict(visible=None), dict(visible=[[1, 0]]*3), dict(ignore=None), dict(ignore=[1, 0, 1]), dict(scores=[.5, .25, .5]),
    dict(scores=None), dict(masks=None), dict(masks=[[SQUARE]]*3), dict(mask=None), dict(mask='m.png'),
    dict(mask=np.zeros((10, 20), np.uint8)), dict(group='h'), dict(group=None), dict(split='train'), dict(split=None)],
    ids=str)
def test_an_annotation_with_another_value_in_any_field_is_not_the_same(kw):
    assert not filled().same_as(filled(**kw)) and not filled(**kw).same_as(filled())

def test_an_annotation_of_another_size_is_not_the_same():
    assert not ann().same_as(ann(size=(10, 20)))

def test_boxes_and_points_are_compared_within_the_tolerance_and_nothing_else_is():
    a,b = (ann(labels=['x'], bboxes=[[x, 1, 5, 5]], points=[[[x, 2], [NAN, NAN]]], scores=[.5])
           for x in (1, 1.25))
    assert a.same_as(b, .25) and b.same_as(a, tol=.25) and not a.same_as(b, .2) and not a.same_as(b)
    assert not a.same_as(replace(a, scores=[.75]), 1) and not a.same_as(replace(a, points=[[[1, 2], [3, 3]]]), 100)

def test_masks_are_compared_by_their_pixels():
    m = decode_mask([SQUARE], (20, 10))
    forms = [ann(labels=['x'], bboxes=[[1, 1, 5, 5]], masks=[o]) for o in (
        [SQUARE], [np.reshape(SQUARE, (-1, 2))], m, encode_rle(m), [SQUARE, SQUARE[2:] + SQUARE[:2]])]
    assert all(a.same_as(b) for a in forms for b in forms)
    other = m.copy(); other[0, 0] = True
    assert not any(a.same_as(replace(a, masks=[other]), 1) for a in forms)

def test_class_masks_in_files_are_compared_as_given():
    table = lambda i=1: MaskTable(np.int32([0, 7]), np.uint8([0, i]), False)
    assert ann(mask='m.png').same_as(ann(mask=Path('m.png'))) and not ann(mask='m.png').same_as(ann(mask='n.png'))
    assert ann(mask=MaskFile('m.png', table())).same_as(ann(mask=MaskFile(Path('m.png'), table())))
    assert not ann(mask=MaskFile('m.png', table())).same_as(ann(mask=MaskFile('m.png', table(2))))
    assert not ann(mask=MaskFile('m.png', table())).same_as(ann(mask='m.png'))
    assert ann(mask=np.ones((10, 20), int)).same_as(ann(mask=np.ones((10, 20), np.uint8)))

def test_same_as_refuses_what_is_no_annotation_and_a_tolerance_below_0():
    with pytest.raises(ValueError, match="other: expected an Annotation, got 'a.jpg'"): ann().same_as('a.jpg')
    with pytest.raises(ValueError, match="tol: expected a number .*0 or more.*, got -1"): ann().same_as(ann(), -1)
