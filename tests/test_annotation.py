import pickle
from dataclasses import replace
import numpy as np, pytest
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.errors import AnnotationError

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

def test_boxes_without_area_or_outside_the_picture_are_legal():
    assert ann(labels=['x', 'y'], bboxes=[[5, 5, 5, 5], [-3, 0, 40, 10]]).bboxes.shape == (2, 4)

@pytest.mark.parametrize('kw,message', [
    (dict(labels='cat'), r"a.jpg, labels: expected a list of names, got 'cat'; write \['cat'\]"),
    (dict(labels=['a', 3]), r"a.jpg, labels, row 1: expected a name .* got 3 of type int"),
    (dict(size=(0, 5)), r"size: expected \(w, h\) as two positive whole numbers of pixels, got \(0, 5\)"),
    (dict(size=7), "size: expected"), (dict(size=(1.5, 2)), "size: expected"),
    (dict(bboxes=[[1, 2, 3, 4]]), "labels: expected one label for each of the 1 boxes, got 0 labels"),
    (dict(labels=['a'], bboxes=[[1, 2, 3]]),
     r"bboxes: expected \(n, 4\) numbers x1 y1 x2 y2 in pixels, got an array of shape \(1, 3\)"),
    (dict(labels=['a'], bboxes=[['p', 2, 3, 4]]), "bboxes: expected"),
    (dict(labels=['a', 'b'], bboxes=[[1, 2, 3, 4], [5, 2, 3, 4]]),
     r"bboxes, row 1: expected x1 <= x2 and y1 <= y2, got \[5.0, 2.0, 3.0, 4.0\]; mend the box"),
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
     r"masks, row 0: expected \(h, w\) = \(10, 20\) as the picture's, got"),
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
