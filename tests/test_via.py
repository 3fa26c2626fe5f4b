import json
from dataclasses import replace
import numpy as np, pytest
from PIL import Image
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.via import read_via, write_via
from vision_tasks.ops.masks import decode_mask, encode_rle

W,H = 20,10

def numbers(masks):
    "Masks whose polygons, (m, 2) arrays, are lists of numbers"
    return [m if isinstance(m, dict) else [p.ravel().tolist() for p in m] for m in masks]

def polygon(xs, ys, **attributes):
    return dict(shape_attributes=dict(name='polygon', all_points_x=xs, all_points_y=ys), region_attributes=attributes)
def rect(x, y, width, height, **attributes):
    return dict(shape_attributes=dict(name='rect', x=x, y=y, width=width, height=height), region_attributes=attributes)
def shape(name, **kw): return dict(shape_attributes=dict(name=name, **kw), region_attributes=dict(kind='cat'))

CAT,DOG = polygon([2, 8, 8.5], [1, 1, 7], kind='cat'),rect(3, 2, 5.5, 4, kind='dog')

class Via:
    "Images in pics/, and a json file of them"
    def __init__(self, path): self.pics,self.file = path/'pics',path/'via.json'; (self.pics/'sub').mkdir(parents=True)
    def put(self, *entries, project=True, images=True):
        "`entries`: (file name, regions)"
        files = {f'{name}{i}': dict(filename=name, size=i, regions=r, file_attributes={})
                 for i,(name,r) in enumerate(entries)}
        self.file.write_text(json.dumps(dict(_via_settings={}, _via_img_metadata=files, _via_attributes={})
                                        if project else files))
        for name,_ in entries if images else (): Image.new('RGB', (W, H)).save(self.pics/name)
    def read(self, **kw): return read_via(self.file, self.pics, **kw)

@pytest.fixture
def via(tmp_path): return Via(tmp_path)

@pytest.mark.parametrize('project', [True, False])
@pytest.mark.parametrize('version', [1, 2])
def test_polygons_and_rects_are_read_from_projects_and_exports_of_both_versions(via, project, version):
    form = (lambda r: {str(i): o for i,o in enumerate(r)}) if version == 1 else list
    via.put(('b.png', form([CAT, DOG])), ('sub/a.png', form([])), project=project)
    b,a = via.read(split='valid')
    assert b.path == via.pics/'b.png' and a.path == via.pics/'sub/a.png' and b.size == (W, H) and b.split == 'valid'
    assert b.labels == ['cat', 'dog'] and b.bboxes.tolist() == [[2, 1, 8.5, 7], [3, 2, 8.5, 6]]
    assert numbers(b.masks) == [[[2, 1, 8, 1, 8.5, 7]], []] and b.scores is None and b.ignore is None
    assert a.labels == [] and a.bboxes.shape == (0, 4) and a.masks == []

def test_rects_alone_have_no_masks(via):
    via.put(('a.png', [DOG]))
    a, = via.read()
    assert a.masks is None and a.labels == ['dog']

def test_the_name_is_in_the_attribute_that_label_names_or_in_the_only_one(via):
    via.put(('a.png', [rect(0, 0, 2, 2, kind='cat', age='old')]))
    assert via.read(label='kind')[0].labels == ['cat'] and via.read(label='age')[0].labels == ['old']
    with pytest.raises(AnnotationError, match=r"attributes are \['age', 'kind'\], and label is None; pass the"):
        via.read()
    with pytest.raises(AnnotationError, match="and label is 'sort'"): via.read(label='sort')

def test_label_names_all_objects_where_no_region_has_attributes(via):
    via.put(('a.png', [rect(0, 0, 2, 2)]*2), ('b.png', []))
    assert [a.labels for a in via.read(label='balloon')] == [['balloon']*2, []]
    with pytest.raises(AnnotationError, match="no region has attributes; pass the class of all objects as label="):
        via.read()
    via.put(('b.png', []))
    assert via.read()[0].labels == []   # without regions there is nothing to name

BAD = {   # message: regions of the image bad.png
    r"region 1: the shape is 'circle'; expected a polygon or a rect": [CAT, shape('circle', cx=3, cy=3, r=2)],
    r"region 0: the shape is 'ellipse'; expected a polygon or a rect": [shape('ellipse', cx=3, cy=3, rx=2, ry=1)],
    r"region 0: the shape is 'point'": [shape('point', cx=3, cy=3)],
    r"region 0: the shape is 'polyline'": [shape('polyline', all_points_x=[1, 2, 3], all_points_y=[1, 2, 3])],
    r"region 0: the shape is None": [dict(region_attributes=dict(kind='cat'))],
    r"region 0: 3 x and 2 y; expected equally many": [polygon([1, 2, 3], [1, 2], kind='cat')],
    r"region 0: 2 x and 2 y; expected equally many, for three or more": [polygon([1, 2], [1, 2], kind='cat')],
    r"region 0: all_points_x is \['a', 2, 3\]; expected finite numbers": [polygon(['a', 2, 3], [1, 2, 3], kind='cat')],
    r"region 0: all_points_y is \[1, nan, 3\]": [polygon([1, 2, 3], [1, float('nan'), 3], kind='cat')],
    r"region 0: all_points_y is None": [shape('polygon', all_points_x=[1, 2, 3])],
    r"region 0: rect is \[1, 1, None, 2\]; expected finite numbers": [shape('rect', x=1, y=1, height=2)],
    r"region 0: width and height are -2 and 3; expected 0 or more": [rect(1, 1, -2, 3, kind='cat')],
    r"region 1: its class is None, its attributes are {}; expected a text": [CAT, rect(1, 1, 2, 3)],
    r"region 0: its class is '', .*": [rect(1, 1, 2, 3, kind='')],
    r"region 0: its class is {'cat': True}, .*; expected a text that is not empty":
        [rect(1, 1, 2, 3, kind={'cat': True})],
    r"region 0: the shape is None; ": [7],
}
@pytest.mark.parametrize('message', BAD, ids=range(len(BAD)))
def test_a_region_that_cannot_be_read_raises_or_its_image_is_dropped_and_counted(via, message):
    via.put(('good.png', [CAT]), ('bad.png', BAD[message]))
    with pytest.raises(AnnotationError, match=f"via.json, file 'bad.png1', {message}"): via.read()
    with pytest.warns(UserWarning, match="1 of 2 images are dropped: .*via.json, file 'bad.png1'"):
        kept = via.read(on_error='drop')
    assert [a.path.name for a in kept] == ['good.png'] and kept[0].labels == ['cat']

def test_an_image_that_is_missing_or_listed_twice_is_told(via):
    via.put(('a.png', [CAT]), ('b.png', [CAT]))
    (via.pics/'b.png').unlink()
    with pytest.raises(AnnotationError, match="file 'b.png1': .*b.png: no such image file"): via.read()
    via.put(('a.png', [CAT]), ('a.png', []), ('c.png', []))
    with pytest.raises(AnnotationError, match="file 'a.png0': 2 entries have the filename 'a.png'; keep"): via.read()
    with pytest.warns(UserWarning, match="1 of 2 images"): assert len(via.read(on_error='drop')) == 1

BROKEN = {
    "via.json is not readable json": '{"a": ',
    r"via.json: expected VIA's images, .* got list; save the project": '[]',
    r"via.json: expected VIA's images, .* got \['images'\]": '{"images": []}',
    r"via.json: expected VIA's images, .* got \['a'\]": '{"a": {"filename": "a.png", "regions": 3}}',
    "via.json is a file of VIA 3, .*; this function reads versions 1 and 2: use VIA 2":
        '{"project": {}, "metadata": {}, "file": {}}',
    "via.json lists no images": '{"_via_img_metadata": {}}',
}
@pytest.mark.parametrize('message', BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_is_not_of_via_raises_whatever_on_error(via, message):
    via.file.write_text(BROKEN[message])
    for on_error in ('raise', 'drop'):
        with pytest.raises(AnnotationError, match=message): via.read(on_error=on_error)

def test_missing_folders_and_files_are_told(via):
    with pytest.raises(AnnotationError, match="via.json: no such json file"): via.read()
    via.put(('a.png', [CAT]))
    with pytest.raises(AnnotationError, match="gone: no such folder, which the file names"):
        read_via(via.file, via.pics/'gone')
    with pytest.raises(ValueError, match="split: expected one of"): via.read(split='val')

# --- written and read back

def annotation(via, masks=None, name='a.png', **kw):
    Image.new('RGB', (W, H)).save(via.pics/name)
    n = 1 if masks is None else len(masks)
    return Annotation(via.pics/name, (W, H), kw.pop('labels', ['cat']*n), [[2, 1, 8.5, 7]]*n, masks=masks, **kw)

def there_and_back(via, anns, **kw): return read_via(via.file, write_via(anns, via.file), **kw)

def test_boxes_and_polygons_come_back_with_all_their_digits(via):
    rng = np.random.default_rng(0)
    xy = rng.uniform(-5, 25, (3, 6, 2))
    a = replace(annotation(via, [[]]*3, labels=['cat', 'dog', 'Ünïcode "x"']),
                masks=[[p.ravel().tolist()] for p in xy], bboxes=np.concatenate([xy.min(1), xy.max(1)], 1))
    x1,y1,x2,y2 = np.sort(rng.normal(10, 30, (4, 50)), 0).astype(np.float32)
    boxes = np.stack([x1, y1, x2, y2], 1)
    b = Annotation(annotation(via, name='sub/b.png').path, (W, H), ['cat']*50, boxes)
    c = Annotation(annotation(via, name='c.png').path, (W, H), [], [])
    for x,y in zip((a, b, c), there_and_back(via, [a, b, c]), strict=True):
        assert y.path.resolve() == x.path.resolve() and y.labels == x.labels and y.size == x.size
        np.testing.assert_array_equal(y.bboxes, x.bboxes)
    assert numbers(there_and_back(via, [a])[0].masks) == numbers(a.masks)
    assert there_and_back(via, [b])[0].masks is None

def test_a_rect_among_polygons_keeps_its_empty_mask(via):
    a = annotation(via, [[[2, 1, 8.5, 1, 8, 7]], []])
    assert numbers(there_and_back(via, [a])[0].masks) == numbers(a.masks)

def test_the_file_is_a_project_whose_names_are_a_dropdown(via):
    folder = write_via([annotation(via, labels=['dog']), annotation(via, name='b.png')], via.file, label='kind')
    data = json.loads(via.file.read_text())
    assert data['_via_attributes']['region']['kind']['options'] == dict(cat='', dog='')
    n = (via.pics/'a.png').stat().st_size
    assert list(data['_via_img_metadata']) == data['_via_image_id_list'] == [f'a.png{n}', f'b.png{n}']
    assert data['_via_settings']['core']['default_filepath'] == f'{folder.as_posix()}/' and folder == via.pics
    assert [a.labels for a in read_via(via.file, folder, label='kind')] == [['dog'], ['cat']]
    assert write_via([annotation(via, name='sub/a.png')], via.file, via.pics) == via.pics
    assert read_via(via.file, via.pics)[0].path == via.pics/'sub/a.png'

PARTS = [[1., 1, 6, 1, 6, 5, 1, 5], [10.3, 2.2, 15, 2.4, 12, 8]]
def test_parts_become_one_polygon_of_the_same_pixels(via):
    back, = there_and_back(via, [annotation(via, [PARTS])])
    (m,), = back.masks
    assert len(m) == 4 + 3 + 3   # the ways there and back
    np.testing.assert_array_equal(decode_mask([m], (W, H)), decode_mask(PARTS, (W, H)))

def test_rle_and_arrays_become_outlines_of_the_same_pixels(via):
    m = np.random.default_rng(0).random((H, W)) < .3
    for o in (m, encode_rle(m)):
        back, = there_and_back(via, [annotation(via, [o])])
        np.testing.assert_array_equal(decode_mask(back.masks[0], (W, H)), m)

RING = np.pad(np.pad(np.zeros((2, 2), bool), 1, constant_values=True), ((2, 4), (3, 13)))
UNFIT = {
    "masks, row 0: mask: polygons cannot have holes, and it has 1, one at": dict(masks=[RING]),
    "masks, row 0: the mask is empty and would be lost": dict(masks=[np.zeros((H, W), bool)]),
    "masks, row 0: the polygons overlap, and joined to one they would have a hole there":
        dict(masks=[[[1, 1, 6, 1, 6, 5, 1, 5], [3, 3, 9, 3, 9, 8, 3, 8]]]),
    "masks, row 0: mask, polygon 0: expected three or more points": dict(masks=[[[1, 2, 3, 4]]]),
    "VIA has no flag for ignored objects, and other tools would train on them": dict(ignore=[True]),
    "this format cannot store points": dict(points=[[[1, 2]]]),
    "row 0: this format cannot store an empty label": dict(labels=[' ']),
}
@pytest.mark.parametrize('message', UNFIT, ids=range(len(UNFIT)))
def test_what_via_cannot_hold_is_refused_before_a_file_is_written(via, message):
    a = annotation(via, **UNFIT[message])
    with pytest.raises(AnnotationError, match=f"a.png.*{message}"): write_via([a], via.file)
    assert not via.file.exists()

def test_annotations_without_a_file_or_boxes_and_images_twice_are_refused(via):
    a = annotation(via)
    for bad,message in (([replace(a, path=None)], "annotation 0 has no file"),
                        ([replace(a, path='gone.png')], "gone.png: no such image file"),
                        ([Annotation(a.path, a.size, ['cat'])], "VIA files hold objects, but this annotation has"),
                        ([a, a], "a.png appears twice, in annotations 0 and 1; merge its objects")):
        with pytest.raises(AnnotationError, match=message): write_via(bad, via.file)
    with pytest.raises(AnnotationError, match="is not in images="): write_via([a], via.file, via.pics/'sub')

def test_two_images_whose_name_and_size_make_one_key_are_both_written(tmp_path):
    for name,n in (('1', 1070), ('110', 70)):
        Image.new('L', (1, 1)).save(tmp_path/name, 'BMP')
        data = (tmp_path/name).read_bytes()
        (tmp_path/name).write_bytes(data[:n] + bytes(max(0, n - len(data))))
    anns = [Annotation(tmp_path/o, (1, 1), ['x'], [[0, 0, 1, 1]]) for o in ('1', '110')]
    assert (tmp_path/'1').stat().st_size == 1070 and (tmp_path/'110').stat().st_size == 70
    write_via(anns, tmp_path/'x.json')
    assert [a.path.name for a in read_via(tmp_path/'x.json', tmp_path)] == ['1', '110']
