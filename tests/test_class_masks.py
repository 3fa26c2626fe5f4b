import os, pickle, struct, zlib
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.check import check_annotations
from vision_tasks.data.class_masks import MaskFile, decode_class_mask
from vision_tasks.data.formats.instance_masks import read_instance_masks
from vision_tasks.data.formats.mask_values import read_codes
from vision_tasks.data.formats.masks import read_masks, write_masks

CODES = ['sky', 'road', 'car']
W,H = 8,6

def random_mask(values, seed=0, dtype=np.uint8):
    "Every one of `values` occurs"
    rng = np.random.default_rng(seed)
    return rng.permutation(np.resize(values, W*H)).reshape(H, W).astype(dtype)

def png(values, bits, palette=None):
    "A png of grey, or of palette entries, written by the specification; Pillow writes no grey of 2 or 4 bits"
    h,w = values.shape
    digits = (values[...,None].astype(int) >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(digits.reshape(h, w*bits), axis=1)
    data = b''.join(b'\0' + r.tobytes() for r in rows)
    number = lambda n: struct.pack('>I', n)
    def chunk(kind, body): return number(len(body)) + kind + body + number(zlib.crc32(kind + body))
    head = number(w) + number(h) + bytes([bits, 0 if palette is None else 3, 0, 0, 0])
    plte = b'' if palette is None else chunk(b'PLTE', bytes(palette))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + plte + chunk(b'IDAT', zlib.compress(data)) +
            chunk(b'IEND', b''))

def exif(o):
    e = Image.Exif(); e[0x0112] = o
    return e

class Folder:
    "Images in images/, masks in masks/"
    def __init__(self, path):
        self.images,self.masks = path/'images',path/'masks'
        for o in (self.images, self.masks): o.mkdir(parents=True)
    def image(self, name, size=(W, H), **kw): Image.new('RGB', size).save(self.images/name, **kw)
    def put(self, stem, mask, suffix='.png', size=None, **kw):
        "An image, and its mask from an array, a Pillow image, or the bytes of a file"
        if isinstance(mask, np.ndarray): mask = Image.fromarray(mask)
        self.image(f'{stem}.jpg', size or getattr(mask, 'size', (W, H)))
        file = self.masks/f'{stem}{suffix}'
        if isinstance(mask, bytes): file.write_bytes(mask)
        else: mask.save(file, **kw)
        return file
    def read(self, codes=CODES, **kw): return read_masks(self.images, self.masks, codes, **kw)
    def arrays(self, codes=CODES, **kw): return [decode_class_mask(a.mask, a.size) for a in self.read(codes, **kw)]

@pytest.fixture
def folder(tmp_path): return Folder(tmp_path)

def same(x, y): np.testing.assert_array_equal(x, y); assert x.dtype == np.uint8

# --- indices

def with_palette(m):
    im = Image.fromarray(m)
    im.putpalette([9, 9, 9]*256)   # one colour for all: only the indices tell the classes apart
    return im

FILES = {'grey': Image.fromarray, 'palette': with_palette, '16 bit': lambda m: Image.fromarray(m.astype(np.uint16)),
         'grey of 2 bits': lambda m: png(m, 2), 'grey of 4 bits': lambda m: png(m, 4),
         'palette of 2 bits': lambda m: png(m, 2, [9, 9, 9]*4), '16 bit by hand': lambda m: png(m, 16)}

@pytest.mark.parametrize('kind', FILES)
def test_indices_come_as_they_stand_in_the_file(folder, kind):
    m = random_mask([0, 1, 2])
    folder.put('a', FILES[kind](m))
    a, = folder.read()
    assert a.path == folder.images/'a.jpg' and a.mask == folder.masks/'a.png' and a.size == (W, H)
    assert a.labels == [] and a.split is None
    np.testing.assert_array_equal(decode_class_mask(a.mask), m)
    assert decode_class_mask(a.mask).dtype == (np.int32 if '16' in kind else np.uint8)

@pytest.mark.parametrize('suffix', ['.bmp', '.tif', '.gif'])
def test_other_formats_without_loss_serve_too(folder, suffix):
    folder.put('a', with_palette(random_mask([0, 1, 2])), suffix)
    assert folder.read()[0].mask.suffix == suffix
    same(folder.arrays()[0], random_mask([0, 1, 2]))

def test_one_bit_is_two_classes(folder):
    m = random_mask([0, 1])
    folder.put('a', Image.fromarray(m > 0))
    assert Image.open(folder.masks/'a.png').mode == '1'
    same(folder.arrays(['off', 'on'])[0], m)

def test_255_is_void_and_any_value_can_be(folder):
    m = random_mask([0, 1, 2, 255])
    folder.put('a', m)
    assert isinstance(folder.read()[0].mask, Path)
    same(folder.arrays()[0], m)
    folder.put('a', np.where(m == 255, 11, m).astype(np.uint8))
    assert isinstance(folder.read(void=11)[0].mask, MaskFile)
    same(folder.arrays(void=11)[0], m)
    same(folder.arrays({0: 'sky', 2: 'car'}, void=(1, 11))[0], np.select([m == 0, m == 2], [0, 1], 255))
    folder.put('a', m)
    for void in ((), 11, [11, 12]):
        with pytest.raises(AnnotationError, match=r"values without a class: 255 \(12 px\)"): folder.read(void=void)

def test_a_value_outside_the_codes_raises_with_file_values_and_counts(folder):
    m = np.zeros((H, W), np.uint8)
    m[0,:3],m[1,1] = 7,9
    folder.put('b', m); folder.put('a', np.eye(H, W, dtype=np.uint8))
    with pytest.raises(AnnotationError, match=r"masks/b.png: values without a class: 7 \(3 px\), 9 \(1 px\); "
                                              r"expected 0-2, 255; fix the mask, or add them to codes, colors or"):
        folder.read()
    with pytest.warns(UserWarning, match=r"1 of 2 images are dropped: .*b.png: values without a class: 7 \(3"):
        assert [a.path.stem for a in folder.read(on_error='drop')] == ['a']
    folder.put('b', np.arange(W*H, dtype=np.uint16).reshape(H, W) + 1000)
    with pytest.raises(AnnotationError, match=r"1004 \(1 px\) and 43 more; expected 0-2, 255"): folder.read()

LOSSY = [('jpg', {}, 'JPEG'), ('webp', {}, 'lossy WebP'), ('jp2', {}, 'JPEG 2000'), ('avif', {}, 'AVIF'),
         ('tif', dict(compression='jpeg'), 'TIFF with JPEG compression')]

@pytest.mark.parametrize('suffix, kw, name', LOSSY)
@pytest.mark.parametrize('called', [None, '.png'])
def test_masks_in_lossy_formats_are_refused_whatever_their_name(folder, suffix, kw, name, called):
    if f'.{suffix}' not in Image.registered_extensions(): pytest.skip(f'this Pillow writes no {suffix}')
    m = np.zeros((H, W), np.uint8)   # one value, which no format changes
    file = folder.put('a', m, f'.{suffix}', **kw)
    if called: file = file.rename(file.with_suffix(called))
    told = f"mask .*masks/a.{(called or suffix).lstrip('.')} is a {name}, a lossy format that changes classes"
    for read in (folder.read, lambda: folder.read(colors=[0, 100, 200]), lambda: folder.read(colors=RGB),
                 lambda: decode_class_mask(file), lambda: read_instance_masks(folder.images, folder.masks, 'x')):
        with pytest.raises(AnnotationError, match=told): read()
    rows = check_annotations([Annotation(folder.images/'a.jpg', (W, H), mask=file)], CODES)
    assert rows.detail.str.contains(name).any()

def test_webp_without_loss_is_a_mask(folder):
    m = random_mask([0, 1, 2])
    folder.put('a', np.repeat(m[...,None], 3, 2), '.webp', lossless=True)
    same(folder.arrays(colors={(i, i, i): i for i in range(3)})[0], m)

def test_a_mask_of_several_pages_is_refused(folder):
    m = [Image.fromarray(random_mask([0, 1], i)) for i in range(3)]
    folder.put('a', m[0], '.tif', save_all=True, append_images=m[1:])
    with pytest.raises(AnnotationError, match=r"a.tif holds 3 images \(pages 0 to 2\), expected one"): folder.read()

# --- colours

RGB = [(0, 0, 0), (128, 64, 128), (1, 2, 3)]

@pytest.fixture
def painted(folder):
    "The folder, and the mask whose colours are in it"
    m = random_mask([0, 1, 2, 255])
    folder.put('a', np.array([*RGB, (224, 224, 192)], np.uint8)[np.minimum(m, 3)])
    return folder,m

VOID = (224, 224, 192)

@pytest.mark.parametrize('colors,void', [
    (RGB, VOID), (dict(zip(RGB, CODES)), [VOID]), (dict(zip(RGB, range(3))), VOID), (np.array(RGB), (VOID, (5, 5, 5))),
    (np.array(RGB, np.uint8), list(VOID)), ({(9, 9, 9): 'sky', **dict(zip(RGB, CODES)), VOID: 255}, None)])
def test_colours_become_classes_by_a_table(painted, colors, void):
    folder,m = painted
    same(folder.arrays(colors=colors, void=void)[0], m)

def test_colours_are_found_in_every_kind_of_file(painted):
    folder,m = painted
    rgb = Image.open(folder.masks/'a.png').convert('RGB')
    rgba = np.dstack([np.asarray(rgb), random_mask(range(0, 256, 16))])   # transparency says nothing
    for im in (rgb.quantize(8), Image.fromarray(rgba)):
        folder.put('a', im)
        assert Image.open(folder.masks/'a.png').mode == im.mode
        same(folder.arrays(colors=RGB, void=VOID)[0], m)
    folder.put('a', Image.fromarray(random_mask([0, 7])))
    same(folder.arrays(colors={(0, 0, 0): 'sky', (7, 7, 7): 'car'})[0], random_mask([0, 2]))

def test_an_unknown_colour_raises_with_the_colour_its_count_and_the_file(painted):
    folder,m = painted
    with pytest.raises(AnnotationError, match=r"masks/a.png: colours without a class: \(224, 224, 192\) \(12 px\); "
                       r"expected \(0, 0, 0\), \(1, 2, 3\), \(128, 64, 128\); fix the mask, or add them to"):
        folder.read(colors=RGB)

def test_colours_without_a_table_and_a_table_without_colours_are_told(painted):
    folder,_ = painted
    with pytest.raises(AnnotationError, match=r"a.png holds colours \(mode RGB\), not one integer per pixel; .* as "
                                              "colors="): folder.read()
    with pytest.raises(AnnotationError, match=r"holds colours \(mode RGB\)"): folder.read(colors=[0, 1, 2])
    folder.put('a', random_mask([0, 1]).astype(np.uint16))
    with pytest.raises(AnnotationError, match="a.png has mode I;16.*which has no 8-bit colours"):
        folder.read(colors=RGB)

# --- values that are no indices

def test_0_and_255_are_two_classes_on_request_only(folder):
    m = random_mask([0, 1])
    folder.put('a', m*255); folder.put('b', np.zeros_like(m))
    for codes in (['off', 'on'], ['off'], {0: 'off', 1: 'on'}):
        with pytest.raises(AnnotationError, match="all 2 masks in .* hold only 'off' and the value 255, which "
                                                  r"is void by default; pass colors=\[0, 255\]"):
            folder.read(codes)
    for kw in (dict(colors=[0, 255]), dict(colors={255: 'on', 0: 0})): same(folder.arrays(['off', 'on'], **kw)[0], m)
    same(folder.arrays({0: 'off', 255: 'on'})[0], m)
    same(folder.arrays(['off', 'on'], void=255)[0], m*255)
    folder.put('c', m)   # a class beside them: nothing is ambiguous
    same(folder.arrays(['off', 'on'])[0], m*255)

def test_a_trimap_has_a_void_border(folder):
    m = random_mask([1, 2, 3])
    folder.put('a', m)
    same(folder.arrays({1: 'pet', 2: 'background'}, void=3)[0], np.array([9, 0, 1, 255])[m])
    same(folder.arrays(['background', 'pet'], colors={1: 'pet', 2: 'background'}, void=3)[0],
         np.array([9, 1, 0, 255])[m])
    same(folder.arrays(['background', 'pet'], colors={2: 0, 1: 1, 3: 255})[0], np.array([9, 1, 0, 255])[m])

def test_several_values_may_be_one_class(folder):
    m = random_mask(range(4))
    folder.put('a', m)
    same(folder.arrays(['ground', 'thing'], colors={0: 'ground', 1: 'ground', 2: 'thing', 3: 'thing'})[0], m//2)

def test_holes_in_the_numbering_close_up(folder, tmp_path):
    codes = {0: 'unlabeled', 3: 'car', 13: 'stop sign', 300: 'rug'}
    m = random_mask(list(codes), dtype=np.uint16)
    folder.put('a', m)
    expected = np.select([m == k for k in codes], range(4)).astype(np.uint8)
    same(folder.arrays(codes)[0], expected)
    yaml = tmp_path/'masks.yaml'
    yaml.write_text("train: {images: x}\nclasses:\n" + ''.join(f'  {k}: {v}\n' for k,v in codes.items()))
    assert read_codes(yaml) == codes and list(read_codes(yaml)) == list(codes)
    for o in (yaml, str(yaml)): same(folder.arrays(o)[0], expected)
    yaml.write_text("nc: 2\nnames: [sky, road]\n")
    assert read_codes(yaml) == {0: 'sky', 1: 'road'}
    with pytest.raises(AnnotationError, match=r"values without a class: .*; expected 0, 3, 13, 255"):
        folder.read({k: v for k,v in codes.items() if k < 300})

@pytest.mark.parametrize('text,message', [
    ("a: [", "is not readable yaml"), ("- x", r"expected `classes` or `names`, a list or a table .*, got \['x'\]"),
    ("nc: 3", r"got \['nc'\]"), ("names: 3", r"got \['names'\]"),
    ("names: [a]\nclasses: [b]", r"got \['classes', 'names'\]")])
def test_yaml_of_another_kind_is_told(tmp_path, text, message):
    (tmp_path/'m.yaml').write_text(text)
    with pytest.raises(AnnotationError, match=f"m.yaml:? .*{message}"): read_codes(tmp_path/'m.yaml')
    with pytest.raises(AnnotationError, match="no.yaml: no such yaml file; codes is a list of names"):
        read_codes(tmp_path/'no.yaml')

# --- sizes and EXIF

def test_a_size_that_differs_from_the_images_raises_and_names_both(folder):
    folder.put('a', random_mask([0, 1]), size=(W, W))
    with pytest.raises(AnnotationError, match="mask .*masks/a.png is 8x6, but its image .*images/a.jpg is 8x8; "):
        folder.read()

@pytest.mark.parametrize('suffix', ['jpg', 'tif'])
def test_a_mask_lies_on_the_image_as_shown(folder, suffix):
    m = random_mask([0, 1, 2])
    folder.image(f'a.{suffix}', (W, H), exif=exif(6))
    Image.fromarray(m.T.copy()).save(folder.masks/'a.png')
    assert folder.read()[0].size == (H, W)
    same(folder.arrays()[0], m.T)
    Image.fromarray(m).save(folder.masks/'a.png')
    with pytest.raises(AnnotationError, match=rf"a.png is 8x6, but its image .*a.{suffix} is 6x8 as shown \(8x6 as st"
                                              "ored, before its EXIF orientation is applied"): folder.read()

@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('kind', ['grey', 'palette', '16 bit'])
def test_a_mask_that_exif_turns_is_turned(folder, kind, suffix):
    m = random_mask([0, 1, 2])
    folder.image('a.jpg', (W, H), exif=exif(6))
    FILES[kind](m).save(folder.masks/f'a.{suffix}', exif=exif(6))
    np.testing.assert_array_equal(folder.arrays()[0], np.rot90(m, -1))

# --- which mask is whose

def test_pairs_are_found_by_stem_function_or_list(folder):
    m = random_mask([0, 1])
    for s in 'cab': folder.put(s, m)
    (folder.masks/'._a.png').write_bytes(b'macOS'); (folder.images/'a.mat').write_bytes(b'no image')
    assert [a.path.stem for a in folder.read(split='valid')] == ['a', 'b', 'c']
    assert {a.split for a in folder.read(split='valid')} == {'valid'}
    images = [folder.images/f'{s}.jpg' for s in 'ca']   # a choice, in its own order
    stems = lambda anns: [(a.path.stem, Path(a.mask).stem) for a in anns]
    assert stems(read_masks(images, folder.masks, CODES)) == [('c', 'c'), ('a', 'a')]
    for kind in (list, iter):   # of paths or their texts; fastai's L is no list either
        masks = kind([folder.masks/'b.png', str(folder.masks/'a.png')])
        assert stems(read_masks(map(str, images), masks, CODES)) == [('c', 'b'), ('a', 'a')]
    for s in 'ca': (folder.masks/f'{s}.png').rename(folder.masks/f'{s}_L.png')
    expected = [('c', 'c_L'), ('a', 'a_L')]
    assert stems(read_masks(images, folder.masks, CODES, mask_of=lambda p: f'{p.stem}_L.png')) == expected
    for masks in (folder.masks, None):
        of = lambda p: folder.masks/f'{p.stem}_L.png'
        assert stems(read_masks(images, masks, CODES, mask_of=of)) == expected

def two_masks(f): f.put('x', random_mask([0, 1]), '.tif'); f.put('x', random_mask([0, 1]))
def two_images(f): f.put('x', random_mask([0, 1])); f.image('x.bmp')
def no_mask(f): f.image('x.jpg')
def no_image(f): f.put('x', random_mask([0, 1])); (f.images/'x.jpg').unlink()
def cut_mask(f): file = f.put('x', random_mask([0, 1])); file.write_bytes(file.read_bytes()[:60])
def no_mask_file(f): f.put('x', b'nonsense')
def cut_image(f): f.put('x', random_mask([0, 1])); (f.images/'x.jpg').write_bytes(b'nonsense')

@pytest.mark.parametrize('damage,message', [
    (two_masks, "images/x.jpg: ambiguous masks; .*masks there is x.png and x.tif; pair them with mask_of="),
    (two_images, r"images/x.bmp and .*images/x.jpg: ambiguous masks; .*masks there is x.png"),
    (no_mask, "images/x.jpg has no mask of its stem in .*masks; pass it with mask_of=, or drop the image"),
    (no_image, r"mask .*masks/x.png has no image of its stem in .*images; restore the image"),
    (cut_mask, r"mask .*masks/x.png cannot be read as an image .*; replace the file \(mask of .*images/x.jpg\)"),
    (no_mask_file, r"mask .*masks/x.png cannot be read as an image"),
    (cut_image, r"images/x.jpg: cannot be read as an image")])
def test_what_cannot_be_paired_or_read_raises_or_is_dropped_and_counted(folder, damage, message):
    folder.put('a', random_mask([0, 1])); damage(folder)
    with pytest.raises(AnnotationError, match=message): folder.read()
    with pytest.warns(UserWarning, match=f"1 of 2 images are dropped: .*{message}"):
        assert [a.path.stem for a in folder.read(on_error='drop')] == ['a']

def test_missing_files_of_lists_are_told(folder):
    folder.put('a', random_mask([0, 1]))
    with pytest.raises(AnnotationError, match="b.jpg: no such image file; fix the name"):
        read_masks([folder.images/'b.jpg'], [folder.masks/'a.png'], CODES)
    with pytest.raises(AnnotationError, match=r"masks/b.png.* \(mask of .*a.jpg\)"):
        folder.read(mask_of=lambda p: 'b.png')
    with pytest.raises(AnnotationError, match="a.jpg has no mask by mask_of=; pass it"):
        folder.read(mask_of={'b.jpg': 'a.png'}.get)

def test_masks_of_images_that_were_not_chosen_are_no_matter(folder):
    for s in 'ab': folder.put(s, random_mask([0, 1]))
    assert len(read_masks([folder.images/'b.jpg'], folder.masks, CODES)) == 1

@pytest.mark.parametrize('kw,message', [
    (dict(codes=[]), "codes is empty"),
    (dict(codes=['a', 'a']), r"codes: 'a' appears twice; .* colors=\{value: name\}"),
    (dict(codes=['a', 3]), "codes, number 1: expected a name, got 3"), (dict(codes={'a': 0}), "got 'a': 0"),
    (dict(codes=[str(i) for i in range(256)]), "index 255 is always void.* that one must be 'void', not '255'"),
    (dict(split='val'), "split: expected one of 'train', 'valid', 'test', got 'val'; did you mean 'valid'"),
    (dict(on_error='skip'), "on_error: expected one of 'raise', 'drop'"),
    (dict(colors=RGB[:2]), "colors: expected one for each of the 3 codes, got 2"),
    (dict(colors={(0, 0, 0): 'rod'}), "colors: 'rod' is not one of the 3 codes, by name or index; did you mean 'road'"),
    (dict(colors={(0, 0, 0): 3}), "colors: 3 is not one of the 3 codes"),
    (dict(colors=[(0, 0, 0), (0, 0, 256), (1, 1, 1)]), r"expected colours \(r, g, b\) of 0 to 255, got \(0, 0, 256\)"),
    (dict(colors=[(0, 0, 0), 1, 2]), r"expected colours .*, got 1"), (dict(colors=[.5, 1, 2]), "expected colours"),
    (dict(colors=[0, 1, (2, 2, 2)]), r"expected whole numbers, got \(2, 2, 2\)"),
    (dict(colors=[0, 1, 0]), "0 is both 'sky' and 'car'; remove it from one"),
    (dict(colors=RGB, void=255), "expected colours .*, got 255"),
    (dict(colors=RGB, void=RGB[1]), "is both 'road' and void"),
    (dict(void=0), "0 is both 'sky' and void; remove it from one of them"), (dict(void='sky'), "got 'sky'"),
    (dict(codes={1: 'a', 2: 'b'}, colors=[0, 1]), "codes and colors both have values"),
    (dict(masks=['x.png']), "a list of 1 paths needs a list of equally many images"),
    (dict(masks=None), "masks is None; pass the folder of the masks"),
    (dict(masks='nowhere'), "nowhere: no such folder; pass it as masks="),
    (dict(images=[]), r"images=\[\] holds no image file")])
def test_arguments_without_sense_are_told(folder, kw, message):
    folder.put('a', random_mask([0, 1]))
    with pytest.raises(ValueError, match=message):
        read_masks(**{**dict(images=folder.images, masks=folder.masks, codes=CODES), **kw})

def test_a_folder_of_folders_is_told(folder):
    folder.put('a', random_mask([0, 1]))
    with pytest.raises(AnnotationError, match="holds no image file itself; pass its folders one by one"):
        read_masks(folder.images.parent, folder.masks, CODES)

# --- write

def test_what_is_written_reads_back_to_the_pixel(folder, tmp_path):
    for i in range(5): folder.put(f'{i}', random_mask([0, 1, 2, 7], i))
    anns = folder.read(void=7)
    files = write_masks(anns, tmp_path/'new', CODES)
    assert files == [tmp_path/'new'/f'{i}.png' for i in range(5)]
    back = read_masks(folder.images, tmp_path/'new', CODES)
    for a,b in zip(anns, back): assert b.mask in files; same(decode_class_mask(b.mask), decode_class_mask(a.mask))
    arrays = [replace(a, mask=decode_class_mask(a.mask).astype(np.int64)) for a in anns]
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in write_masks(arrays, tmp_path/'again', CODES)]

@pytest.mark.parametrize('codes,mode', [({0: 'a', 3: 'b', 254: 'c'}, 'P'), ({7: 'a', 256: 'b', 65535: 'c'}, 'I;16')])
def test_values_with_holes_are_written_as_they_were_read(folder, tmp_path, codes, mode):
    m = random_mask([*codes, 255], dtype=np.uint8 if mode == 'P' else np.uint16)
    folder.put('a', m)
    file, = write_masks(folder.read(codes), tmp_path/'new', codes)
    assert Image.open(file).mode == mode
    np.testing.assert_array_equal(np.asarray(Image.open(file)), m)

GIVEN = [([0, 255, 7], None, 'L', [0, 255, 7]), ([0, 255, 7], 100, 'L', [0, 255, 7, 100]),
         ([1, 2, 3], None, 'L', [1, 2, 3, 255]), ([0, 300, 65535], None, 'I;16', [0, 300, 65535, 255]),
         ({4: 'car', 2: 'sky', 3: 1}, 9, 'L', [2, 3, 4, 9])]

@pytest.mark.parametrize('values, void, mode, written', GIVEN)
def test_values_are_written_and_read_back(folder, tmp_path, values, void, mode, written):
    m = np.array([0, 1, 2, 255])[random_mask(range(len(written)))].astype(np.uint8)
    folder.image('a.jpg')
    file, = write_masks([Annotation(folder.images/'a.jpg', (W, H), mask=m)], tmp_path/'new', CODES, values, void=void)
    with Image.open(file) as im: assert im.mode == mode   # no palette, which other tools would take for colours
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.array(written)[np.where(m == 255, 3, m)])
    back, = read_masks(folder.images, tmp_path/'new', CODES, colors=values, void=void)
    same(decode_class_mask(back.mask), m)

@pytest.mark.parametrize('colors', [RGB, dict(zip(RGB, CODES)), np.array(RGB)])
@pytest.mark.parametrize('void', [None, VOID])
def test_colours_are_written_and_read_back(folder, tmp_path, colors, void):
    m = random_mask([0, 1, 2] if void is None else [0, 1, 2, 255])
    folder.image('a.jpg')
    a = Annotation(folder.images/'a.jpg', (W, H), mask=m)
    file, = write_masks([a], tmp_path/'new', CODES, colors=colors, void=void)
    with Image.open(file) as im: assert im.mode == 'RGB'
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.array([*RGB, VOID])[np.minimum(m, 3)])
    back, = read_masks(folder.images, tmp_path/'new', CODES, colors=colors, void=void)
    same(decode_class_mask(back.mask), m)

@pytest.mark.parametrize('kw, message', [
    (dict(values=[0, 1, 2], colors=RGB), "got both values and colors"),
    (dict(void=3), "void= needs"), (dict(values=[0, 1]), "expected one for each of the 3 codes, got 2"),
    (dict(values=[0, 1, 1]), "1 is both 'road' and"), (dict(values=[0, 1, 2], void=1), "'road' and void"),
    (dict(values=RGB), "values: expected whole numbers, got"), (dict(values=[-1, 0, 1]), "from 0 to 65535"),
    (dict(colors=[0, 1, 2]), r"colors: expected colours \(r, g, b\), got"),
    (dict(values=[0, 1, 65536]), "from 0 to 65535"), (dict(values={0: 'sky', 1: 'rod'}), "did you mean 'road'"),
    (dict(values=[0, 255, 7]), r"a.jpg, mask: 12 pixels are void \(255\), which has no value or colour"),
    (dict(colors=RGB), "12 pixels are void"), (dict(values={0: 'sky', 1: 'road'}), r"got \[2\]; are these the codes")])
def test_values_and_colours_that_cannot_be_read_back_are_refused(folder, tmp_path, kw, message):
    folder.image('a.jpg')
    a = Annotation(folder.images/'a.jpg', (W, H), mask=random_mask([0, 1, 2, 255]))
    with pytest.raises(ValueError, match=message): write_masks([a], tmp_path/'new', CODES, **kw)
    assert not list((tmp_path/'new').glob('*'))

def test_more_than_255_codes_take_16_bits_and_leave_255_to_void(folder, tmp_path):
    codes = [str(i) for i in range(300)]
    codes[255] = 'void'
    m = random_mask([0, 254, 255, 256, 299], dtype=np.int32)
    folder.image('a.jpg')
    file, = write_masks([Annotation(folder.images/'a.jpg', (W, H), mask=m)], tmp_path/'new', codes)
    assert Image.open(file).mode == 'I;16'
    a, = read_masks(folder.images, tmp_path/'new', codes)
    assert a.mask == file and decode_class_mask(a.mask).dtype == np.int32
    np.testing.assert_array_equal(decode_class_mask(a.mask), m)

def test_the_palette_is_that_of_pascal_voc(folder, tmp_path):
    m = np.arange(W*H, dtype=np.uint8).reshape(H, W)
    m[-1,-1] = 255
    folder.put('a', m)
    codes = [f'c{i}' for i in range(W*H)]
    file, = write_masks(folder.read(codes), tmp_path/'new', codes)
    im = Image.open(file)
    assert im.mode == 'P'
    np.testing.assert_array_equal(np.asarray(im), m)
    rgb = np.asarray(im.convert('RGB')).reshape(-1, 3).tolist()
    # as the development kit lists them: aeroplane, bicycle, bird, person, tv monitor, void
    known = {1: [128, 0, 0], 2: [0, 128, 0], 3: [128, 128, 0], 15: [192, 128, 128], 20: [0, 64, 128], 0: [0, 0, 0]}
    assert {k: rgb[k] for k in known} == known and rgb[-1] == [224, 224, 192]

def test_what_cannot_be_written_is_told_before_anything_is(folder, tmp_path):
    folder.put('a', random_mask([0, 1, 2]))
    a, = folder.read()
    new,other = tmp_path/'new',replace(a, path=tmp_path/'b'/'a.jpg')
    for anns,message in (([a, other], "b/a.jpg and .*images/a.jpg would both become .*new/a.png; rename one"),
                         ([replace(a, mask=None)], r"a.jpg has no class mask \(`mask` is None\)"),
                         ([replace(a, path=None)], "annotation 0 has no file to name its mask after; set `path`")):
        with pytest.raises(AnnotationError, match=message): write_masks(anns, new, CODES)
    for dest in (folder.masks, folder.masks/'..'/'masks'):
        with pytest.raises(AnnotationError, match="is an image or mask of these annotations"):
            write_masks([a], dest, CODES)
    png = folder.images/'b.png'
    Image.new('RGB', (W, H)).save(png)
    with pytest.raises(AnnotationError, match="images/b.png is an image or mask of these annotations"):
        write_masks([replace(a, path=png)], folder.images, CODES)
    with pytest.raises(ValueError, match="255 cannot be stored in a mask"): write_masks([a], new, {0: 'a', 255: 'b'})
    assert not new.exists() and Image.open(png).mode == 'RGB'
    message = r"a.jpg, mask: expected class indices below 2, or 255 \(void\), got \[2\]; are these the codes of"
    with pytest.raises(AnnotationError, match=message): write_masks([a], new, CODES[:2])

# --- what others rely on

def test_annotations_hold_files_not_pixels(folder):
    for i in range(20): folder.put(f'{i:02d}', np.zeros((100, 100), np.uint8))
    anns = folder.read({0: 'a'}, void=11)
    assert isinstance(anns[0].mask, MaskFile) and 'MaskFile(' in repr(anns[0])
    dump = pickle.dumps(anns)
    assert len(dump) < 20*1000
    again = pickle.loads(dump)
    assert again[0].mask.table is again[-1].mask.table
    same(decode_class_mask(again[3].mask), np.zeros((100, 100)))
    assert replace(anns[0], split='train').mask is anns[0].mask

def test_masks_are_arrays_of_ones_own(folder):
    folder.put('a', random_mask([0, 1]))
    for void in (None, 9):
        m = decode_class_mask(folder.read(void=void)[0].mask)
        m[:] = 5
        same(folder.arrays(void=void)[0], random_mask([0, 1]))

def test_decoding_tells_what_is_no_mask_or_of_another_size():
    m = random_mask([0, 1])
    assert decode_class_mask(m, (W, H)) is m
    same(decode_class_mask(m > 0), m)
    assert decode_class_mask(m.astype(np.int64)).dtype == np.int32
    with pytest.raises(AnnotationError, match="the size of the image, 6x8, got 8x6"): decode_class_mask(m, (H, W))
    for bad in (None, m/2, m[0]):
        with pytest.raises(AnnotationError, match=r"mask: expected a path or \(h, w\) class indices, got"):
            decode_class_mask(bad)
    with pytest.raises(FileNotFoundError, match='gone.png'): decode_class_mask('gone.png')

def test_check_annotations_reads_masks_by_their_table(folder):
    m = random_mask([1, 2, 3])
    file = folder.put('a', m)
    codes = {1: 'a', 2: 'b'}
    anns = folder.read(codes, void=3)
    problems = lambda: check_annotations(anns, list(codes.values()))[['problem', 'detail']].values.tolist()
    assert problems() == []
    folder.put('a', m + 1)   # spoilt since it was read
    (problem,detail), = problems()
    assert problem == 'mask value outside the codes' and f"mask {file}: values without a class: 4 (16 px)" in detail
    folder.put('a', np.ones((H, H), np.uint8), size=(W, H))
    assert problems() == [['size differs', f"mask MaskFile({file}) is 6x6, the image 8x6"]]
    file.unlink()
    (problem,detail), = problems()
    assert problem == 'unreadable image' and str(file) in detail

def test_drawn_shapes_read_back(shapes):
    from vision_tasks.data.synthetic import SHAPE_CODES
    anns = read_masks([a.path for a in shapes], shapes[0].mask.parent, SHAPE_CODES)
    assert [(a.path, a.mask, a.size) for a in anns] == [(a.path, a.mask, a.size) for a in shapes]

# --- real data

real = pytest.mark.skipif('VISION_TASKS_DATA' not in os.environ, reason='VISION_TASKS_DATA names no folder of data')

@pytest.mark.slow
@real
def test_camvid_reads_with_11_classes_and_void(tmp_path):
    path = Path(os.environ['VISION_TASKS_DATA'])/'camvid'
    codes = 'sky building pole road pavement tree sign_symbol fence car pedestrian bicyclist'.split()
    anns = [a for d,s in (('train', 'train'), ('val', 'valid'))
            for a in read_masks(path/d, path/f'{d}annot', codes, void=11, split=s)]
    assert [sum(a.split == s for a in anns) for s in ('train', 'valid')] == [367, 101]
    for a in anns[::20]:
        m = np.asarray(Image.open(a.mask.path))
        same(decode_class_mask(a.mask, a.size), np.where(m == 11, 255, m))
    with pytest.raises(AnnotationError, match=r"values without a class: 11 \(\d+ px\); expected 0-10, 255"):
        read_masks(path/'val', path/'valannot', codes)
    write_masks(anns[::20], tmp_path, codes)
    for a,b in zip(anns[::20], read_masks([a.path for a in anns[::20]], tmp_path, codes)):
        same(decode_class_mask(a.mask), decode_class_mask(b.mask))

@pytest.mark.slow
@real
def test_coco128_reads_with_holes_in_its_numbering():
    path = Path(os.environ['VISION_TASKS_DATA'])/'coco128'
    values = list(read_codes(path/'masks.yaml'))
    for d in ('train2017', 'val2017'):
        with pytest.warns(UserWarning, match="28 of 128 images are dropped: .* has no mask of its stem"):
            anns = read_masks(path/'images'/d, path/'masks'/d, path/'masks.yaml', on_error='drop')
        assert len(anns) == 100 and max(values) == 200 > len(values)
        for a in anns[::10]:
            m = np.asarray(Image.open(a.mask.path))
            np.testing.assert_array_equal(np.array(values)[decode_class_mask(a.mask, a.size)], m)
