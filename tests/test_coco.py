import json, os
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.coco import coco_keypoints, read_coco, write_coco
from vision_tasks.data.synthetic import SHAPE_POINTS
from vision_tasks.ops.masks import decode_mask, encode_rle

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
CATS = [dict(id=7, name='zebra'), dict(id=3, name='ant')]

OBJ,PIC = dict(id=1, image_id=1, category_id=7, bbox=[1, 2, 3, 4.5]),dict(id=1, file_name='a.png', width=20, height=10)
def numbers(masks):
    "Masks whose polygons, (m, 2) arrays, are lists of numbers"
    return [m if isinstance(m, dict) else [p.ravel().tolist() for p in m] for m in masks]

def obj(id=1, image_id=1, **kw): return {**OBJ, 'id': id, 'image_id': image_id, **kw}
def pic(id=1, file_name='a.png', **kw): return {**PIC, 'id': id, 'file_name': file_name, **kw}
def without(o, *keys): return {k: v for k,v in o.items() if k not in keys}

@pytest.fixture
def coco(tmp_path):
    "`coco(annotations, ...)` writes a json of a.png and sub/b.png, ids 1 and 2, 20x10; `coco.read` reads it"
    (tmp_path/'pics'/'sub').mkdir(parents=True)
    for name in ('a', 'sub/b'): Image.new('RGB', (20, 10)).save(tmp_path/'pics'/f'{name}.png')
    def write(annotations=(), images=(pic(), pic(2, 'sub/b.png')), categories=CATS, **kw):
        coco.file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories, **kw)))
        return coco.file
    coco,write.file,write.pics = write,tmp_path/'t.json',tmp_path/'pics'
    coco.read = lambda **kw: read_coco(coco.file, coco.pics, **kw)
    return coco

def test_boxes_become_corners_ids_become_names_and_empty_images_stay(coco):
    coco([obj(5, 2, bbox=[1, 2, 3, 4.5]), obj(6, 2, category_id=3, bbox=[-4, .25, 30, 0], iscrowd=1)])
    a,b = coco.read(split='valid')
    assert a.path == coco.pics/'a.png' and a.labels == [] and a.bboxes.shape == (0, 4) and a.ignore.shape == (0,)
    assert b.path == coco.pics/'sub'/'b.png' and b.size == (20, 10) and a.split == b.split == 'valid'
    assert b.labels == ['zebra', 'ant'] and b.ignore.tolist() == [False, True]
    assert b.bboxes.dtype == np.float32 and b.bboxes.tolist() == [[1, 2, 4, 6.5], [-4, .25, 26, .25]]
    assert all(getattr(b, k) is None for k in ('masks', 'points', 'visible', 'scores', 'mask', 'group'))
    assert coco.read()[0].split is None

def test_labels_do_not_depend_on_the_order_of_the_file(coco):
    anns = [obj(1, category_id=3), obj(2, 2)]
    coco(anns)
    first = coco.read()
    coco(anns[::-1], [pic(2, 'sub/b.png'), pic()], CATS[::-1])
    assert [(a.path, a.labels) for a in coco.read()][::-1] == [(a.path, a.labels) for a in first]

def test_masks_are_kept_as_they_are_and_missing_ones_are_empty(coco):
    runs,text = dict(size=[10, 20], counts=[0, 3, 197]),encode_rle(np.eye(10, 20, dtype=bool))
    kept = [SQUARE, SQUARE],runs,[],text
    coco([obj(segmentation=o) for o in kept] + [obj()])
    a,b = coco.read()
    assert numbers(a.masks) == [*kept, []] and b.masks == []
    assert [int(decode_mask(m, a.size).sum()) for m in a.masks] == [16, 3, 0, 10, 0]
    coco([obj(1, segmentation=[]), obj(2)])
    assert coco.read()[0].masks is None

def test_keypoints_become_points_and_those_with_v_0_are_nan(coco):
    coco([obj(1, keypoints=[1, 2, 2, 0, 0, 0, 3.5, 4, 1]), obj(2), obj(3, keypoints=[])],
         categories=[dict(CATS[0], keypoints=['nose', 'left', 'right'], skeleton=[[1, 2], [1, 3]]), CATS[1]])
    a,b = coco.read()
    np.testing.assert_array_equal(a.points, [[[1, 2], [np.nan]*2, [3.5, 4]], *[[[np.nan]*2]*3]*2])
    assert a.visible.tolist() == [[2, 0, 1], [0]*3, [0]*3] and b.points.shape == (0, 3, 2) and b.visible.shape == (0, 3)
    assert coco_keypoints(coco.file) == (['nose', 'left', 'right'], [(0, 1), (0, 2)])
    coco([obj(1, keypoints=[1, 2, 2])])
    assert coco.read()[0].points.tolist() == [[[1, 2]]] and coco_keypoints(coco.file) == ([], [])

def test_annotations_may_lack_an_id_or_share_one_and_two_categories_of_a_name_are_one_class(coco):
    coco([without(obj(), 'id'), obj(4), obj(4, 2, category_id=3)], categories=[CATS[0], dict(id=3, name='zebra')])
    assert [a.labels for a in coco.read()] == [['zebra']*2, ['zebra']]

def test_ids_may_be_texts(coco):
    coco([obj(image_id='x', category_id='z')], [pic('x')], [dict(id='z', name='zebra')])
    assert coco.read()[0].labels == ['zebra']

KP = [dict(CATS[0], keypoints=['l', 'r'])]
BAD = {   # message: what is wrong about image 1, beside an image 2 that is right
    r"annotation 5: category_id is 9; expected an id of 'categories', one of \[7, 3\]":
        dict(annotations=[obj(5, category_id=9)]),
    "annotation 5: no 'category_id'": dict(annotations=[without(obj(5), 'category_id')]),
    "annotation 5: no 'bbox'; expected x, y, width and height .*; fix it, or drop the annotation":
        dict(annotations=[without(obj(5), 'bbox')]),
    r"annotation 5: bbox is \[1, 2, -3, 4\]; expected .* the last two 0 or more":
        dict(annotations=[obj(5, bbox=[1, 2, -3, 4])]),
    r"annotation 5: bbox is \[1, 2, 3\]": dict(annotations=[obj(5, bbox=[1, 2, 3])]),
    "annotation 5: bbox is 4": dict(annotations=[obj(5, bbox=4)]),
    r"annotation 5: bbox is \[1, 'x', 3, 4\]": dict(annotations=[obj(5, bbox=[1, 'x', 3, 4])]),
    r"annotation 5: bbox is \[nan, 2, 3, 4\]": dict(annotations=[obj(5, bbox=[float('nan'), 2, 3, 4])]),
    "annotation in row 0: bbox is None": dict(annotations=[without(obj(bbox=None), 'id')]),
    "annotation 5: iscrowd is 'yes'; expected 0 or 1": dict(annotations=[obj(5, iscrowd='yes')]),
    r"annotation 5: segmentation is \[\[1, 2, 3, 4\]\]; expected polygons .* of three or more points":
        dict(annotations=[obj(5, segmentation=[[1, 2, 3, 4]])]),
    r"annotation 5: segmentation is \[1, 1, 5, 1,": dict(annotations=[obj(5, segmentation=SQUARE)]),
    r"annotation 5: segmentation is .*; expected .* size \[h, w\] = \[10, 20\]":
        dict(annotations=[obj(5, segmentation=dict(size=[20, 10], counts=[200]))]),
    r"annotation 5: keypoints is \[1, 2, 2\]; expected 6 numbers \(got 3\): x, y and v, .* for each of 2 points":
        dict(annotations=[obj(5, keypoints=[1, 2, 2])], categories=KP),
    r"annotation 5: keypoints is \[1, 2, 3, 1, 2, 2\]; .* v, which is 0, 1 or 2":
        dict(annotations=[obj(5, keypoints=[1, 2, 3, 1, 2, 2])], categories=KP),
    "annotation 5: keypoints is 8; expected 6 numbers:":
        dict(annotations=[obj(5, keypoints=8), obj(6, 2, keypoints=[1, 1, 2]*2)], categories=KP),
    "annotation 5: no 'score'; expected a number in .*, as other annotations of the file have":
        dict(annotations=[obj(5), obj(6, 2, score=.5)]),
    r"annotation 5: score is 50; expected a number in \[0, 1\]": dict(annotations=[obj(5, score=50)]),
    r"annotation 5: image_id 9 is not an id of 'images' \(2 annotations have it\); fix the id, or list the image":
        dict(annotations=[obj(5, 9), obj(6, 9)], images=[]),
    "annotation 5: image_id '2' is not an id": dict(annotations=[obj(5, '2')], images=[]),
    "annotation 5: image_id None is not an id": dict(annotations=[without(obj(5), 'image_id')], images=[]),
    "image 1: 2 images have this id, 'a.png' and 'c.png'": dict(images=[pic(), pic(file_name='c.png')]),
    "image in row 1: id is None for 'a.png'; expected a number or text": dict(images=[pic(None)]),
    "image 1: file_name is None; expected a name relative to .*pics": dict(images=[without(pic(), 'file_name')]),
    "image 1: .*gone.png: no such image file": dict(images=[pic(file_name='gone.png')]),
    "image 1: no width and height; a.png is 20x10: write that": dict(images=[without(pic(), 'width')]),
    "image 1: width and height are 40x20, but a.png is 20x10; scale the boxes": dict(images=[pic(width=40, height=20)]),
}
@pytest.mark.parametrize('message', BAD, ids=range(len(BAD)))
def test_what_cannot_be_read_raises_or_is_dropped_and_counted(coco, message):
    kw = BAD[message]
    coco(**{**kw, 'images': [pic(2, 'sub/b.png'), *kw.get('images', [pic()])]})
    with pytest.raises(AnnotationError, match=f"t.json, {message}"): coco.read()
    with pytest.warns(UserWarning, match="1 of 2 images are dropped: .*t.json"): kept = coco.read(on_error='drop')
    assert [a.path.name for a in kept] == ['b.png']

def test_boxes_of_an_image_before_its_exif_turn_are_told(coco):
    e = Image.Exif(); e[0x0112] = 6
    Image.new('RGB', (20, 10)).save(coco.pics/'t.jpg', exif=e)
    coco(images=[pic(file_name='t.jpg')])
    message = "are 20x10, but t.jpg is 10x20 .*before its EXIF orientation is applied.*; rotate the pixels in the file"
    with pytest.raises(AnnotationError, match=message): coco.read()
    coco(images=[pic(file_name='t.jpg', width=10, height=20)])
    assert coco.read()[0].size == (10, 20)

BROKEN = {
    "t.json is not readable json": '{"images": [',
    "t.json holds a list, not COCO's object .*; a list of detections belongs under 'annotations'": '[]',
    "t.json: no 'annotations'; expected a list of objects": '{"images": []}',
    "t.json: 'images' is {}; expected a list of objects": '{"images": {}}',
    r"t.json: 'images' is \[1\]; expected a list of objects": '{"images": [1]}',
    "t.json lists no images": '{"images": [], "annotations": [], "categories": []}',
}
@pytest.mark.parametrize('message', BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_is_no_coco_json_raises_whatever_on_error_says(coco, message):
    coco.file.write_text(BROKEN[message])
    for on_error in ('raise', 'drop'):
        with pytest.raises(AnnotationError, match=message): coco.read(on_error=on_error)

CATEGORIES = {
    "category id 7 appears twice, for 'zebra' and 'gnu'": [CATS[0], dict(id=7, name='gnu')],
    "category in row 1: expected an id and a name, got {'id': 8}": [CATS[0], dict(id=8)],
    "category 'ant' has other keypoints than category 'zebra' .1 and 2 names.; .*write a file for each":
        [*KP, dict(CATS[1], keypoints=['tip'])],
    "category 'zebra': keypoints are 17; expected a list of names": [dict(CATS[0], keypoints=17)],
}
@pytest.mark.parametrize('message', CATEGORIES, ids=range(len(CATEGORIES)))
def test_categories_without_meaning_are_told(coco, message):
    coco([obj(keypoints=[1, 1, 2]*2)], categories=CATEGORIES[message])
    with pytest.raises(AnnotationError, match=message): coco.read(on_error='drop')

@pytest.mark.parametrize('skeleton', [[[0, 1]], [[1, 3]], [[1]], [['l', 'r']], 4], ids=str)
def test_a_skeleton_of_unknown_points_is_told(coco, skeleton):
    coco(categories=[dict(KP[0], skeleton=skeleton)])
    with pytest.raises(AnnotationError, match="the skeleton is .*; expected pairs of keypoint numbers from 1 to 2"):
        coco_keypoints(coco.file)

def test_missing_files_folders_and_unknown_choices_are_told(coco):
    for read in (coco_keypoints, lambda f: read_coco(f, coco.pics)):
        with pytest.raises(AnnotationError, match="gone.json: no such json file"): read('gone.json')
    coco()
    with pytest.raises(AnnotationError, match="gone: no such folder, which the file"): read_coco(coco.file, 'gone')
    with pytest.raises(ValueError, match="split: expected one of .*'valid'.*, got 'val'"):
        coco.read(split='val', on_error='drop')
    with pytest.raises(ValueError, match="on_error: expected one of 'raise', 'drop'"): coco.read(on_error='skip')

# --- writing

def same(a, b):
    assert (a.path, a.size, a.labels, a.split) == (b.path, b.size, b.labels, b.split)
    for k in ('bboxes', 'points', 'visible', 'ignore', 'scores'):
        np.testing.assert_array_equal(getattr(a, k), getattr(b, k), err_msg=k)

def changed(shapes, seed=0):
    "The drawn shapes with boxes of any float32, some reaching outside, crowds, and points of each visibility"
    rng = np.random.default_rng(seed)
    for a in shapes:
        v = rng.integers(0, 3, a.visible.shape)
        yield replace(a, bboxes=a.bboxes + rng.uniform(-9, 9, (len(v), 1)), ignore=rng.random(len(v)) < .3, visible=v,
                      points=np.where(v[...,None] > 0, a.points, np.nan), mask=None)

def test_writing_and_reading_give_the_same_back(shapes, tmp_path):
    anns,to,kw = list(changed(shapes)),tmp_path/'new'/'t.json',dict(point_names=SHAPE_POINTS, skeleton=[(1, 2), (3, 4)])
    back = read_coco(to, write_coco(anns, to, **kw))
    assert len(back) == len(anns) and any(not len(a.labels) for a in anns) and any(a.ignore.any() for a in anns)
    for a,b in zip(anns, back): same(a, b); assert numbers(a.masks) == numbers(b.masks)
    assert coco_keypoints(to) == (list(SHAPE_POINTS), [(1, 2), (3, 4)])
    write_coco(back, tmp_path/'again.json', **kw)
    assert (tmp_path/'again.json').read_bytes() == to.read_bytes()

def test_predictions_keep_their_scores_and_those_without_masks_and_points_have_none(shapes, tmp_path):
    rng = np.random.default_rng(0)
    anns = [Annotation(a.path, a.size, a.labels, a.bboxes, scores=rng.random(len(a.labels))) for a in shapes]
    for a,b in zip(anns, read_coco(tmp_path/'t.json', write_coco(anns, tmp_path/'t.json')), strict=True):
        same(replace(a, ignore=np.zeros(len(a.labels))), b)
        assert b.masks is None
    assert 'segmentation' not in (tmp_path/'t.json').read_text()

def test_points_without_visibility_are_written_as_visible(shapes, tmp_path):
    a = next(a for a in shapes if len(a.labels))
    points = a.points.copy()
    points[0,1] = np.nan
    to = tmp_path/'t.json'
    b, = read_coco(to, write_coco([replace(a, points=points, visible=None)], to))
    np.testing.assert_array_equal(b.points, points)
    assert b.visible[0].tolist() == [2, 0, 2, 2, 2]
    assert json.loads(to.read_text())['annotations'][0]['num_keypoints'] == 4

def test_pycocotools_reads_the_same_boxes_masks_and_keypoints(shapes, tmp_path):
    COCO = pytest.importorskip('pycocotools.coco').COCO
    mask_api = pytest.importorskip('pycocotools.mask')
    anns,rng = list(changed(shapes)),np.random.default_rng(0)
    for a in anns:   # polygons (two of them arrays), bool arrays, RLE in runs, text and bytes
        for i,p in enumerate(a.masks):
            m = decode_mask(p, a.size)
            runs = np.diff(np.flatnonzero(np.diff(m.T.ravel(), prepend=False)), prepend=0, append=m.size)
            a.masks[i] = [p, [np.reshape(p[0], (-1, 2)), np.float32(SQUARE)], m, dict(size=m.shape, counts=runs),
                          encode_rle(m), mask_api.encode(np.asfortranarray(m))][rng.integers(6)]
    root = write_coco(anns, tmp_path/'t.json', point_names=SHAPE_POINTS)
    theirs,seen = COCO(str(tmp_path/'t.json')),0
    names = {i: c['name'] for i,c in theirs.cats.items()}
    assert names == dict(enumerate(vocab_of(anns), 1)) and len(names) == 4
    for id,a,b in zip(theirs.getImgIds(), anns, read_coco(tmp_path/'t.json', root), strict=True):
        objects,image = theirs.imgToAnns[id],theirs.imgs[id]
        assert root/image['file_name'] == a.path and (image['width'], image['height']) == a.size
        assert [names[o['category_id']] for o in objects] == a.labels
        assert [o['iscrowd'] for o in objects] == a.ignore.tolist()
        assert [o['num_keypoints'] for o in objects] == (a.visible > 0).sum(1).tolist()
        for o,box,mask,back in zip(objects, a.bboxes, a.masks, b.masks):
            x,y,w,h = o['bbox']
            np.testing.assert_array_equal(np.float32([x, y, x+w, y+h]), box)
            for m in (mask, back): np.testing.assert_array_equal(theirs.annToMask(o), decode_mask(m, a.size))
            seen += 1
    assert seen > 40

def test_pycocotools_scores_our_truth_as_perfect_and_one_class_of_four_as_a_quarter(shapes, tmp_path):
    COCO,COCOeval = pytest.importorskip('pycocotools.coco').COCO,pytest.importorskip('pycocotools.cocoeval').COCOeval
    vocab = vocab_of(shapes)
    def pred(a, names):
        k = [i for i,o in enumerate(a.labels) if o in names]
        return Annotation(a.path, a.size, [a.labels[i] for i in k], a.bboxes[k], scores=np.ones(len(k)))
    write_coco(shapes, tmp_path/'true.json')
    for names,expected in ((vocab, 1), (vocab[-1:], .25)):
        # without `vocab` the one class would have the id 1
        write_coco([pred(a, names) for a in shapes], tmp_path/'pred.json', vocab=vocab)
        truth = COCO(str(tmp_path/'true.json'))
        e = COCOeval(truth, truth.loadRes(json.loads((tmp_path/'pred.json').read_text())['annotations']), 'bbox')
        e.evaluate(); e.accumulate(); e.summarize()
        assert e.stats[0] == pytest.approx(expected)

def test_area_is_that_of_the_mask_or_else_of_the_box(tmp_path):
    Image.new('RGB', (20, 10)).save(tmp_path/'a.png')
    m = np.zeros((10, 20), bool)
    m[2:4,3:8] = True
    masks = [[SQUARE, [10, 0, 12, 0, 12, 3]], m, encode_rle(m), dict(size=(10, 20), counts=[0, 7, 193]), []]
    write_coco([Annotation(tmp_path/'a.png', (20, 10), ['x']*5, [[0, 0, 2, 5]]*5, masks=masks)], tmp_path/'t.json')
    assert [o['area'] for o in json.loads((tmp_path/'t.json').read_text())['annotations']] == [16 + 3, 10, 10, 7, 10]

def test_file_names_start_from_the_folder_that_holds_all_or_from_the_one_given(shapes, tmp_path, monkeypatch):
    for name in ('p/q/a.png', 'p/r/b.png'):
        (tmp_path/name).parent.mkdir(parents=True)
        Image.new('RGB', (4, 4)).save(tmp_path/name)
    anns = [Annotation(tmp_path/o, (4, 4), bboxes=[]) for o in ('p/q/a.png', 'p/r/b.png')]
    names = lambda: [o['file_name'] for o in json.loads((tmp_path/'t.json').read_text())['images']]
    assert write_coco(anns, tmp_path/'t.json') == tmp_path/'p' and names() == ['q/a.png', 'r/b.png']
    assert write_coco(anns, tmp_path/'t.json', tmp_path) == tmp_path and names() == ['p/q/a.png', 'p/r/b.png']
    monkeypatch.chdir(tmp_path)
    assert write_coco([replace(anns[0], path='p/q/a.png')], 't.json', 'p') == Path('p') and names() == ['q/a.png']
    with pytest.raises(AnnotationError, match="b.png is not in images='p.q'"): write_coco(anns, 't.json', 'p/q')
    assert write_coco([], tmp_path/'t.json') == tmp_path and names() == []

def test_what_coco_cannot_hold_is_refused(shapes, tmp_path):
    a,to = next(a for a in shapes if len(a.labels)),tmp_path/'t.json'
    masked = lambda m: [replace(a, masks=[m]*len(a.labels))]
    three = replace(a, points=a.points[:,:3], visible=None)
    for error,message,anns,kw in (
        (AnnotationError, "COCO files hold boxes, but this annotation", [Annotation(a.path, a.size, ['a'])], {}),
        (AnnotationError, "annotation 1 has no file: save its image", [a, Annotation(None, (64, 64), bboxes=[])], {}),
        (AnnotationError, "5 points, but 2 point_names", [a], dict(point_names=['l', 'r'])),
        (AnnotationError, "png: 3 points, but .*png has 5; all images of a file must have", [a, three], {}),
        (AnnotationError, "masks, row 0: mask: expected an .h, w. bool array", masked(np.ones((64, 64))), {}),
        (AnnotationError, "masks, row 0: expected polygons of three or more points", masked([[1, 2, 3, 4]]), {}),
        (AnnotationError, "masks, row 0: RLE: expected counts whose sum", masked(dict(size=(64, 64), counts=[5])), {}),
        (AnnotationError, "some annotations have scores and some have None; .*: write two",
         [a, replace(a, scores=np.ones(len(a.labels)))], {}),
        (ValueError, "a skeleton joins named points", [a], dict(skeleton=[(0, 1)])),
        (ValueError, "skeleton: expected pairs of indices from 0 to 4", [a],
         dict(point_names=SHAPE_POINTS, skeleton=[(4, 5)]))):
        with pytest.raises(error, match=message): write_coco(anns, to, **kw)
    assert not to.exists()

def test_ten_times_as_many_objects_take_about_ten_times_as_long(tmp_path, monkeypatch):
    "No quadratic look-up: 100 times would be the sign of one"
    import time, vision_tasks.data.formats.coco as module
    monkeypatch.setattr(module, 'size_of', lambda path: (20, 10))
    def seconds(n):
        images,anns = [pic(i, f'{i}.png') for i in range(n)],[obj(i, i%n) for i in range(5*n)]
        (tmp_path/'t.json').write_text(json.dumps(dict(images=images, annotations=anns, categories=CATS)))
        start = time.process_time()
        assert sum(len(a.labels) for a in read_coco(tmp_path/'t.json', tmp_path)) == 5*n
        return time.process_time() - start
    assert min(seconds(3000) for _ in range(3)) < 35*min(seconds(300) for _ in range(5))   # the least disturbed of each

@pytest.mark.slow
@pytest.mark.skipif('VISION_TASKS_DATA' not in os.environ, reason='VISION_TASKS_DATA names no folder of data')
def test_the_nuts_read_with_all_their_objects_as_pycocotools_reads_them():
    COCO = pytest.importorskip('pycocotools.coco').COCO
    path = Path(os.environ['VISION_TASKS_DATA'])/'nuts'
    anns,theirs = read_coco(path/'trainval.json', path/'images'),COCO(str(path/'trainval.json'))
    assert (len(anns), sum(len(a.labels) for a in anns), len(vocab_of(anns))) == (18, 165, 3)
    for id,a in zip(theirs.imgs, anns, strict=True):
        for o,label,mask,box in zip(theirs.imgToAnns[id], a.labels, a.masks, a.bboxes, strict=True):
            assert theirs.cats[o['category_id']]['name'] == label
            np.testing.assert_array_equal(theirs.annToMask(o), decode_mask(mask, a.size))
            np.testing.assert_allclose([*box[:2], *(box[2:] - box[:2])], o['bbox'], atol=1e-3)

@pytest.mark.parametrize('width,height', [('20', '10'), (20., 10.), ('20.0', 10)])
def test_a_size_may_be_text_or_whole_floats(coco, width, height):
    coco([obj(1)], [pic(width=width, height=height)])
    assert coco.read()[0].size == (20, 10)

@pytest.mark.parametrize('width', ['20px', '', [20], True, 20.5, float('nan'), float('inf'), -20, 0, '0x14'])
def test_a_size_that_is_no_number_is_named(coco, width):
    coco([], [pic(width=width)])
    with pytest.raises(AnnotationError, match="t.json, image 1: width is .*; expected a whole number"): coco.read()
