import os
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from vision_tasks.data.annotation import Annotation, select_objects
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.check import check_annotations
from vision_tasks.data.formats.coco import read_coco, write_coco
from vision_tasks.data.formats.instance_masks import read_instance_masks, write_instance_masks
from vision_tasks.data.formats.masks import read_masks
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.data.formats.via import read_via, write_via
from vision_tasks.data.formats.yolo import read_yolo, write_yolo
from vision_tasks.ops.masks import decode_mask, encode_rle, mask_bbox, mask_polygons

W,H = 9,6
IDS = np.array([[0, 0, 7, 7, 0, 0, 0, 0, 0],
                [0, 0, 7, 7, 0, 0, 2, 0, 0],
                [0, 0, 0, 0, 0, 0, 2, 2, 0],
                [300, 0, 0, 0, 0, 0, 0, 0, 0],
                [300, 0, 0, 0, 0, 0, 0, 0, 7],
                [300, 300, 0, 0, 0, 0, 0, 0, 7]])

class Folder:
    "Images in images/, id masks in masks/"
    def __init__(self, path):
        self.images,self.masks = path/'images',path/'masks'
        for o in (self.images, self.masks): o.mkdir(parents=True)
    def put(self, stem, mask, suffix='.png', size=None):
        "An image, and its mask from an array or a Pillow image"
        if isinstance(mask, np.ndarray): mask = Image.fromarray(mask)
        self.image(stem, size or mask.size)
        mask.save(self.masks/f'{stem}{suffix}')
    def image(self, stem, size=(W, H)):
        Image.new('RGB', size).save(self.images/f'{stem}.jpg')
        return self.images/f'{stem}.jpg'
    def read(self, label='cell', **kw): return read_instance_masks(self.images, self.masks, label, **kw)

@pytest.fixture
def folder(tmp_path): return Folder(tmp_path)

def annotation(folder, masks, stem='a', **kw):
    "An image whose objects have these (h, w) bool arrays"
    return Annotation(folder.image(stem), (W, H), kw.pop('labels', ['cell']*len(masks)),
                      np.reshape([mask_bbox(m) for m in masks], (-1, 4)), masks=masks, **kw)

@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32])
def test_every_id_is_one_object_in_the_order_of_ids_with_a_tight_box(folder, dtype):
    ids = IDS if dtype != np.uint8 else np.where(IDS == 300, 200, IDS)
    folder.put('a', ids.astype(dtype), '.tif' if dtype == np.int32 else '.png')
    a, = folder.read(split='train')
    assert a.labels == ['cell']*3 and a.size == (W, H) and a.split == 'train' and a.ignore is None
    assert a.bboxes.tolist() == [[6, 1, 8, 3], [2, 0, 9, 6], [0, 3, 2, 6]]   # 7 is in two pieces, and one object
    for m,i in zip(a.masks, np.unique(ids)[1:]): assert m == encode_rle(ids == i)

def test_a_mask_of_zeros_is_an_image_without_objects_and_void_is_none(folder):
    folder.put('a', np.zeros((H, W), np.uint8))
    folder.put('b', np.where(IDS == 300, 255, IDS).astype(np.uint8))
    a,b = folder.read()
    assert a.bboxes.shape == (0, 4) and a.masks == [] and a.labels == [] and len(b.labels) == 3
    assert [len(o.labels) for o in folder.read(void=255)] == [0, 2] and len(folder.read(void=[255, 7])[1].labels) == 1
    assert len(check_annotations([b], ['cell'])) == 0

def test_a_palette_file_holds_ids_whatever_its_colours(folder):
    im = Image.fromarray(np.where(IDS == 300, 3, IDS).astype(np.uint8))
    im.putpalette([9, 9, 9]*256)
    folder.put('a', im)
    assert folder.read()[0].bboxes.tolist() == [[6, 1, 8, 3], [0, 3, 2, 6], [2, 0, 9, 6]]

def test_masks_are_found_by_stem_by_a_function_or_by_lists(folder):
    folder.put('a', IDS.astype(np.uint16))
    (folder.masks/'a.png').rename(folder.masks/'a_mask.png')
    with pytest.raises(AnnotationError, match="a.jpg has no mask of its stem in .*masks; pass it with mask_of="):
        folder.read()
    a, = folder.read(mask_of=lambda p: f'{p.stem}_mask.png')
    b, = read_instance_masks([folder.images/'a.jpg'], [folder.masks/'a_mask.png'], 'cell')
    assert a.masks == b.masks and len(a.masks) == 3

# --- a file for each object

class Bowl:
    "The layout of the 2018 Data Science Bowl: <id>/images/<id>.png, <id>/masks/*.png"
    def __init__(self, path): self.path = path
    def put(self, stem, masks, names=None):
        folder = self.path/stem
        for o in ('images', 'masks'): (folder/o).mkdir(parents=True)
        Image.new('RGB', (W, H)).save(folder/'images'/f'{stem}.png')
        for i,m in enumerate(masks):
            Image.fromarray(m).save(folder/'masks'/(names[i] if names else f'{"qwe"[i]}{stem}.png'))
        return folder/'masks'
    def images(self): return sorted(self.path.glob('*/images/*.png'))
    def read(self, mask_of=lambda p: p.parents[1]/'masks', **kw):
        return read_instance_masks(self.images(), None, 'nucleus', mask_of=mask_of, **kw)

@pytest.fixture
def bowl(tmp_path): return Bowl(tmp_path)

def test_a_folder_has_a_file_for_each_object(bowl):
    seven,two = IDS == 7,IDS == 2
    wide = seven | two   # objects of two files may overlap
    folder = bowl.put('a', [np.uint8(o)*255 for o in (seven, two, wide)])
    bowl.put('b', [two*np.uint16(300)]); bowl.put('c', [])
    (folder/'Thumbs.db').write_bytes(b'no mask'); (folder/'._x.png').write_bytes(b'macOS')
    a,b,c = bowl.read(split='train')
    order = [wide, seven, two]   # 'ea.png', 'qa.png', 'wa.png'
    assert a.masks == [encode_rle(o) for o in order] and a.labels == ['nucleus']*3 and a.split == 'train'
    np.testing.assert_array_equal(a.bboxes, [mask_bbox(o) for o in order])
    assert b.masks == [encode_rle(two)] and c.masks == [] and c.bboxes.shape == (0, 4)
    for o in (a, b, c): assert len(check_annotations([o], ['nucleus'])) == 0

def test_a_list_has_a_file_for_each_object_in_its_order(bowl):
    seven,two = IDS == 7,IDS == 2
    folder = bowl.put('a', [np.uint8(seven), two], ['x.png', 'y.png'])
    files = [folder/'y.png', folder/'x.png']
    want = [encode_rle(two), encode_rle(seven)]
    for masks,mask_of in ((None, lambda p: files), (folder, lambda p: ['y.png', 'x.png']), ([files], None)):
        a, = read_instance_masks(bowl.images(), masks, 'cell', mask_of=mask_of)
        assert a.masks == want
    assert read_instance_masks(bowl.images(), [folder], 'cell')[0].masks == want[::-1]
    assert read_instance_masks(bowl.images(), folder, 'cell', mask_of=lambda p: [])[0].masks == []
    one, = read_instance_masks(bowl.images(), folder, 'cell', mask_of=lambda p: 'x.png')   # a file of ids
    assert one.masks == want[1:]

NOT_ONE = {
    r"mask .*masks/qa.png of .*a.png: expected one object, .* the values \[2, 7, 200\]; for a file of ids": lambda b:
        b.put('a', [np.where(IDS == 300, 200, IDS).astype(np.uint8)]),
    r"mask .*masks/wa.png of .*a.png: expected an object, got only pixels with value 0; delete the file": lambda b:
        b.put('a', [np.uint8(IDS == 7), np.zeros((H, W), np.uint8)]),
    r"mask .*masks/qa.png is 6x9, but its image .*a.png is 9x6": lambda b: b.put('a', [np.uint8(IDS == 7).T.copy()]),
    r"mask .*masks/a.jpg is a JPEG": lambda b: b.put('a', [np.uint8(IDS == 7)*255], ['a.jpg']),
    r"mask .*masks/qa.png holds colours": lambda b: b.put('a', [np.zeros((H, W, 3), np.uint8)]),
}
@pytest.mark.parametrize('message', NOT_ONE, ids=range(len(NOT_ONE)))
def test_a_file_that_is_not_one_object_raises_or_is_dropped_and_counted(bowl, message):
    NOT_ONE[message](bowl)
    bowl.put('b', [np.uint8(IDS == 7)])
    with pytest.raises(AnnotationError, match=message): bowl.read()
    with pytest.warns(UserWarning, match='1 of 2'): assert len(bowl.read(on_error='drop')) == 1

def test_files_twice_missing_files_and_class_masks_in_folders_are_refused(bowl):
    folder = bowl.put('a', [np.uint8(IDS == 7)])
    with pytest.raises(AnnotationError, match="qa.png appears twice by mask_of="):
        bowl.read(lambda p: [folder/'qa.png']*2)
    with pytest.raises(AnnotationError, match="gone.png"): bowl.read(lambda p: [folder/'gone.png'])
    with pytest.raises(AnnotationError, match="has no mask by mask_of="): bowl.read(lambda p: None)
    for masks in (folder, [folder/'qa.png']):
        with pytest.raises(AnnotationError, match="a.png has a list or folder of masks by mask_of=; a class"):
            read_masks(bowl.images(), None, ['a', 'b'], mask_of=lambda p: masks)

def test_void_values_of_a_file_are_no_object(bowl):
    bowl.put('a', [np.where(IDS == 300, 255, np.where(IDS == 7, 7, 0)).astype(np.uint8)])
    a, = bowl.read(void=255)
    assert a.masks == [encode_rle(IDS == 7)]

BAD = {
    r"mask .*bad.png is 6x9, but its image .*bad.jpg is 9x6; bring both to one size": lambda f:
        f.put('bad', IDS.T.astype(np.uint16), size=(W, H)),
    r"bad.jpg has no mask of its stem": lambda f: f.image('bad'),
    r"mask .*bad.png holds colours \(mode RGB\), not one integer per pixel; expected the ids of objects": lambda f:
        f.put('bad', np.zeros((H, W, 3), np.uint8)),
    r"mask .*bad.jpg is a JPEG, a lossy format that changes .*; save masks as png": lambda f:
        f.put('bad', IDS.astype(np.uint8), '.jpg'),
    r"mask .*bad.tif: expected ids of objects, 0 or more, got -1": lambda f:
        f.put('bad', np.full((H, W), -1, np.int32), '.tif'),
    r"bad.png cannot be read as an image .*mask of .*bad.jpg": lambda f:
        (f.image('bad'), (f.masks/'bad.png').write_bytes(b'no png')),
}
@pytest.mark.parametrize('message', BAD, ids=range(len(BAD)))
def test_what_cannot_be_read_raises_or_is_dropped_and_counted(folder, message):
    folder.put('good', IDS.astype(np.uint16))
    BAD[message](folder)
    with pytest.raises(AnnotationError, match=message): folder.read()
    with pytest.warns(UserWarning, match="1 of 2 images are dropped"): kept = folder.read(on_error='drop')
    assert [a.path.stem for a in kept] == ['good']

def test_arguments_without_meaning_are_refused(folder):
    folder.put('a', IDS.astype(np.uint16))
    with pytest.raises(ValueError, match="label: expected a text that is not empty, got ''"): folder.read('')
    with pytest.raises(ValueError, match="label: expected a text that is not empty, got None"): folder.read(None)
    with pytest.raises(ValueError, match="split: expected one of .* got 'val'"): folder.read(split='val')

# --- written and read back

@pytest.mark.parametrize('n, mode', [(0, 'L'), (3, 'L'), (255, 'L'), (256, 'I;16')])
def test_objects_come_back_from_id_masks_in_their_order_and_beyond_255_in_16_bits(folder, tmp_path, n, mode):
    size = 40,30
    path = folder.image('a', size)
    ids = np.random.default_rng(0).permutation(np.resize(np.arange(n + 1), 1200)).reshape(30, 40)
    masks = [ids == i for i in range(1, n + 1)]
    a = Annotation(path, size, ['cell']*n, np.reshape([mask_bbox(m) for m in masks], (-1, 4)), masks=masks)
    file, = write_instance_masks([a], tmp_path/'out')
    with Image.open(file) as im: assert im.mode == mode
    back, = read_instance_masks(folder.images, tmp_path/'out', 'cell')
    np.testing.assert_array_equal(back.bboxes, a.bboxes)
    assert back.labels == a.labels and back.masks == [encode_rle(m) for m in masks]

ONE,TWO = (np.pad(np.ones((2, 3), bool), ((1, 3), (i, 6 - i))) for i in (1, 5))
def test_polygons_rle_and_arrays_are_written_alike(folder, tmp_path):
    for form in (lambda m: m, encode_rle, mask_polygons):
        a = annotation(folder, [ONE, TWO])
        a = Annotation(a.path, a.size, a.labels, a.bboxes, masks=[form(m) for m in a.masks])
        write_instance_masks([a], tmp_path/'out')
        ids = np.asarray(Image.open(tmp_path/'out'/'a.png'))
        np.testing.assert_array_equal(ids, ONE + 2*TWO)

UNFIT = {
    r"a.jpg, masks, rows 0 and 1: 4 pixels belong to both": lambda f: annotation(f, [ONE, np.roll(ONE, 1, 1)]),
    r"a.jpg, masks, row 1: the mask is empty, so the object would be lost": lambda f: annotation(f, [ONE, ONE & ~ONE]),
    r"id masks do not store classes, but there are 'x' \(.*a.jpg\) and 'y'": lambda f:
        annotation(f, [ONE, TWO], labels=['x', 'y']),
    r"a.jpg: id masks have no flag for ignored objects": lambda f: annotation(f, [ONE, TWO], ignore=[False, True]),
    r"a.jpg has no boxes; drop it": lambda f: Annotation(f.image('a'), (W, H), ['cell']),
    r"a.jpg has no masks; drop it": lambda f: Annotation(f.image('a'), (W, H), ['cell'], [[0, 0, 2, 2]]),
    r"a.jpg, masks, row 0: mask, polygon 0: expected three or more points": lambda f:
        Annotation(f.image('a'), (W, H), ['cell'], [[0, 0, 2, 2]], masks=[[[1, 2, 3, 4]]]),
    r"annotation 0 has no file": lambda f: Annotation(None, (W, H), [], []),
}
@pytest.mark.parametrize('message', UNFIT, ids=range(len(UNFIT)))
def test_what_an_id_mask_cannot_hold_is_refused(folder, tmp_path, message):
    a = UNFIT[message](folder)
    with pytest.raises(AnnotationError, match=message): write_instance_masks([a], tmp_path/'out')
    assert not list((tmp_path/'out').glob('*'))

def test_no_image_and_no_mask_is_written_over(folder, tmp_path):
    Image.new('RGB', (W, H)).save(folder.images/'a.png')
    a = Annotation(folder.images/'a.png', (W, H), [], [])
    with pytest.raises(AnnotationError, match="a.png is an image or mask of these annotations"):
        write_instance_masks([a], folder.images)
    b = annotation(folder, [ONE])
    with pytest.raises(AnnotationError, match="would both become"): write_instance_masks([a, b], tmp_path/'out')

# --- every format keeps masks

def apart(anns):
    "Objects of one name that share no pixel, as outlines without holes"
    for a in anns:
        pixels,seen,keep = [decode_mask(m, a.size) for m in a.masks],np.zeros(a.size[::-1], bool),[]
        for i,m in enumerate(pixels):
            if m.any() and not (m & seen).any(): keep.append(i); seen |= m
        b = select_objects(a, keep)
        masks = [mask_polygons(pixels[i], 'fill') for i in keep]
        yield Annotation(b.path, b.size, ['shape']*len(keep), [mask_bbox(decode_mask(m, b.size)) for m in masks],
                         masks=masks)

def by_coco(anns, dest): return read_coco(dest/'t.json', write_coco(anns, dest/'t.json'))
def by_yolo(anns, dest): return read_yolo(write_yolo(anns, dest))
def by_via(anns, dest): return read_via(dest/'t.json', write_via(anns, dest/'t.json'))
def by_ids(anns, dest): return read_instance_masks([a.path for a in anns], write_instance_masks(anns, dest), 'shape')

@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "Polygons of drawn shapes, some of them in two pieces, and an image without any"
    anns = [a for a in draw_shapes(tmp_path_factory.mktemp('drawn'), n=12, size=64) if a.masks is not None]
    res = list(apart(anns))
    assert any(not a.labels for a in res) and sum(len(a.labels) for a in res) > 10
    a = res[0]
    two = mask_polygons(np.pad(np.eye(2, dtype=bool).repeat(4, 0).repeat(4, 1), ((0, 56), (0, 56))))
    return [Annotation(a.path, a.size, ['shape'], [[0, 0, 8, 8]], masks=[two]), *res[1:]]

def polygons(mask, size): return mask
def rle(mask, size): return encode_rle(decode_mask(mask, size))

@pytest.mark.parametrize('there_and_back, make', [(by_yolo, polygons)] + [   # write_yolo refuses RLE and arrays
    (f, o) for f in (by_coco, by_via, by_ids) for o in (polygons, rle, decode_mask)])
def test_masks_come_back_from_every_format_to_the_pixel(drawn, tmp_path, there_and_back, make):
    anns = [Annotation(a.path, a.size, a.labels, a.bboxes, masks=[make(m, a.size) for m in a.masks]) for a in drawn]
    back = {b.path.name: b for b in there_and_back(anns, tmp_path)}
    assert len(back) == len(anns)
    for a in anns:
        b = back[a.path.name]
        assert b.labels == a.labels
        np.testing.assert_array_equal(b.bboxes, a.bboxes)
        for m,n in zip(a.masks, b.masks, strict=True):
            np.testing.assert_array_equal(decode_mask(m, a.size), decode_mask(n, a.size))

# --- a real data set

@pytest.mark.slow
@pytest.mark.skipif('VISION_TASKS_DATA' not in os.environ, reason='VISION_TASKS_DATA names no folder of data')
def test_pennfudan_is_read_and_comes_back(tmp_path):
    data = Path(os.environ['VISION_TASKS_DATA'])/'pennfudan'
    read = lambda masks: read_instance_masks(data/'images', masks, 'person', mask_of=lambda p: f'{p.stem}_mask.png')
    anns = read(data/'masks')
    assert len(anns) == 170 and sum(len(a.labels) for a in anns) == 423
    a = anns[0]
    ids = np.asarray(Image.open(data/'masks'/f'{a.path.stem}_mask.png'))
    for i,(m,box) in enumerate(zip(a.masks, a.bboxes), 1):
        np.testing.assert_array_equal(decode_mask(m, a.size), ids == i)
        np.testing.assert_array_equal(mask_bbox(ids == i), box)
    for file in write_instance_masks(anns, tmp_path): file.rename(file.with_name(f'{file.stem}_mask.png'))
    assert all(a.masks == b.masks and np.array_equal(a.bboxes, b.bboxes) for a,b in zip(anns, read(tmp_path)))

@pytest.mark.parametrize('void', ['255', [255.], None])
def test_void_values_are_whole_numbers(tmp_path, void):
    with pytest.raises(ValueError, match='^void.*: expected'): read_instance_masks(tmp_path, tmp_path, 'x', void=void)
