import struct, zlib
import numpy as np, pytest
from PIL import Image, TiffImagePlugin
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.items import FileImage
from vision_tasks.data.image import (grey_levels, image_size, lossy_format, read_image, set_grey_range, shown_size,
                                     stored_size, to_rgb, upright)
from vision_tasks.data.reading import size_of

PX = np.random.default_rng(0).integers(0, 255, (24, 36, 3), dtype=np.uint8)

def exif(o):
    e = Image.Exif(); e[0x0112] = o
    return e

# the side of the image at which the file's row 0 and column 0 are, by the EXIF standard
SIDES = {1: 'top left', 2: 'top right', 3: 'bottom right', 4: 'bottom left', 5: 'left top', 6: 'right top',
         7: 'right bottom', 8: 'left bottom'}

def stored(px, o):
    "The rows and columns that a file of orientation `o` holds of the image `px`, (h, w, c) as shown"
    row,column = SIDES[o].split()
    if row in ('left', 'right'): px = px.swapaxes(0, 1)
    if row in ('bottom', 'right'): px = px[::-1]
    return np.ascontiguousarray(px[:,::-1] if column in ('bottom', 'right') else px)

@pytest.mark.parametrize('o', SIDES)
@pytest.mark.parametrize('suffix, kw, tol', [
    ('jpg', dict(quality=100, subsampling=0), 3), ('png', {}, 0), ('webp', dict(lossless=True), 0), ('tif', {}, 0),
    ('tif', dict(compression='tiff_lzw'), 0)])
@pytest.mark.parametrize('mode', ['RGB', 'L'])   # Pillow maps uncompressed rows of grey into memory
def test_every_orientation_arrives_upright_with_one_size(tmp_path, suffix, kw, tol, mode, o):
    file = tmp_path/f'a.{suffix}'
    px = PX[:3,:5].repeat(8, 0).repeat(8, 1)
    if mode == 'L': px = px[...,:1].repeat(3, 2)
    Image.fromarray(stored(px, o)).convert(mode).save(file, exif=exif(o), **kw)
    assert image_size(file) == read_image(file).size == FileImage.create(file).size == (40, 24)
    for im in (read_image(file), FileImage.create(file), FileImage.create(file.read_bytes()),
               FileImage.create(Image.open(file))):
        assert im.size == (40, 24) and np.abs(np.asarray(im).astype(int) - px).max() <= tol
    assert np.abs(FileImage.create(file).pixels().numpy().transpose(1, 2, 0).astype(int) - px).max() <= tol
    with Image.open(file) as im:
        assert stored_size(im) == ((40, 24) if o < 5 else (24, 40))
        assert upright(im).size == shown_size(upright(im)) == (40, 24)

COLOUR = 204, 51, 51   # a colour of Pillow's palette, so that modes P and PA keep it

# modes of 8 bits: the colour that the network sees, and what conversion to 8 bits may cost
MODES = {'1': ((255, 255, 255), 0), 'L': ((200, 200, 200), 0), 'LA': ((200, 200, 200), 0), 'La': ((200, 200, 200), 2),
         'P': (COLOUR, 0), 'PA': (COLOUR, 0), 'RGB': (COLOUR, 0), 'RGBA': (COLOUR, 0), 'RGBa': (COLOUR, 2),
         'RGBX': (COLOUR, 0), 'CMYK': (COLOUR, 0), 'YCbCr': (COLOUR, 2), 'HSV': (COLOUR, 2)}

@pytest.mark.parametrize('mode', MODES)
def test_every_mode_of_8_bits_becomes_rgb_of_its_colour(mode):
    colour,tol = MODES[mode]
    im = Image.new('RGB', (8, 8), colour)
    if mode in ('La', 'RGBa'): im.putalpha(128)
    for o in (im.convert(mode), FileImage.create(im.convert(mode))):
        rgb = to_rgb(o)
        assert rgb.mode == 'RGB' and np.abs(np.asarray(rgb).astype(int) - colour).max() <= tol

@pytest.mark.parametrize('mode, suffix', [('1', 'png'), ('L', 'png'), ('LA', 'png'), ('P', 'png'), ('RGBA', 'png'),
                                          ('PA', 'tif'), ('RGBX', 'tif'), ('CMYK', 'tif'), ('CMYK', 'jpg'),
                                          ('L', 'jpg'), ('P', 'gif'), ('RGBA', 'webp')])
def test_files_of_every_mode_arrive_as_rgb_of_their_colour(tmp_path, mode, suffix):
    colour,tol = MODES[mode]
    im = Image.new('RGB', (8, 8), colour).convert(mode)
    im.save(tmp_path/f'a.{suffix}', **dict(jpg=dict(quality=100), webp=dict(lossless=True)).get(suffix, {}))
    for rgb in (read_image(tmp_path/f'a.{suffix}'), FileImage.create(tmp_path/f'a.{suffix}').decode()):
        assert rgb.mode == 'RGB' and np.abs(np.asarray(rgb).astype(int) - colour).max() <= max(tol, 3*(suffix == 'jpg'))

def test_lab_becomes_the_colour_that_scikit_image_computes(tmp_path):
    lab2rgb = pytest.importorskip('skimage.color').lab2rgb
    lab = np.array([[[50., 20, -30], [70, -20, 40], [90, 0, 0], [30, 10, 10]]])
    im = Image.frombytes('LAB', (4, 1), (lab*[2.55, 1, 1]).round().astype(np.int64).astype(np.uint8).tobytes())
    im.save(tmp_path/'a.tif')
    for got in (to_rgb(im), read_image(tmp_path/'a.tif')):
        d = np.abs(np.asarray(got) - lab2rgb(lab)*255)
        assert d.max() < 9 and d[0,2].max() < .5   # Pillow's profiles go by way of another white, and grey stays grey

# --- more than 8 bits

def tiff12(values):
    "A TIFF of 12 bits, two values in three bytes; Pillow writes none. (h, w), w even"
    h,w = values.shape
    a,b = values[:,::2].astype(int),values[:,1::2].astype(int)
    data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 2).astype(np.uint8).tobytes()
    tags = [(256, w), (257, h), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 12*9 + 4), (277, 1), (278, h),
            (279, len(data))]
    ifd = b''.join(struct.pack('<HHII', k, 4, 1, v) for k,v in tags)
    return b'II*\0' + struct.pack('<IH', 8, len(tags)) + ifd + b'\0'*4 + data

def png48(values):
    "A PNG of 16 bits a channel, (h, w, 3); Pillow writes none"
    h,w,_ = values.shape
    rows = b''.join(b'\0' + o.astype('>u2').tobytes() for o in values)
    number = lambda n: struct.pack('>I', n)
    def chunk(kind, body): return number(len(body)) + kind + body + number(zlib.crc32(kind + body))
    head = struct.pack('>IIBBBBB', w, h, 16, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')

RAMP = np.arange(4096).reshape(64, 64)

def written(file, kind):
    "`file` with the values 0 to 4095, in another kind of file"
    if kind == '12 bits': file.write_bytes(tiff12(RAMP))
    else: Image.fromarray(RAMP.astype({'16 bits': np.uint16, '16 bits, big': '>u2', 'whole': np.int32,
                                       'float': np.float32}[kind])).save(file)
    return file

@pytest.mark.parametrize('kind, mode', [('12 bits', 'I;16'), ('16 bits', 'I;16'), ('16 bits, big', 'I;16B'),
                                        ('whole', 'I'), ('float', 'F')])
def test_grey_of_more_than_8_bits_is_scaled_by_the_range_that_is_asked_for(tmp_path, kind, mode):
    file = written(tmp_path/'a.tif', kind)
    with Image.open(file) as im: assert im.mode == mode
    def readings(**kw):
        with Image.open(file) as im: ours = FileImage.create(im, **kw)
        return [np.asarray(o)[...,0] for o in (read_image(file, **kw), FileImage.create(file, **kw), ours,
                                               FileImage.create(file.read_bytes(), **kw))]
    full = (RAMP*255/4095)
    for got in readings(grey_range='data') + readings(grey_range=(0, 4095)): assert np.abs(got - full).max() <= .5
    for got in readings(grey_range=(1000, 2000)):   # a window, as for computed tomography
        assert np.abs(got - ((RAMP - 1000)*.255).clip(0, 255)).max() <= .5
    if kind == '12 bits':   # the file says so
        for got in readings(): assert np.abs(got - full).max() < 1
    elif mode.startswith('I;16'):
        with pytest.warns(UserWarning, match=r"nearly black: 16 grey levels of 256\); call set_grey_range\(\(0, 4095"):
            for got in readings(): assert np.array_equal(got, RAMP//257)
    else:
        with pytest.raises(OSError, match=rf"a.tif cannot be .*mode {mode} holds .*, here 0 to 4095, .*set_grey_range"):
            read_image(file)
        with pytest.raises(ValueError, match=f"mode {mode} holds"): FileImage.create(Image.open(file))

@pytest.fixture
def grey_range_as_it_was():
    yield
    set_grey_range()

def test_the_range_that_is_set_holds_wherever_none_is_given(tmp_path, grey_range_as_it_was):
    file = written(tmp_path/'a.tif', 'float')
    for grey_range in ('data', (0, 4095)):
        set_grey_range(grey_range)
        for im in (read_image(file), FileImage.create(file), FileImage.create(Image.open(file)),
                   to_rgb(Image.open(file))):
            assert im.getextrema() == ((0, 255),)*3
        assert grey_levels(file) == 256
    later = FileImage.create(file)
    set_grey_range()
    assert later.getextrema() == ((0, 255),)*3   # what held when it was opened
    with pytest.raises(OSError, match="mode F"): read_image(file)

@pytest.mark.parametrize('bad', ['min', '12', (1,), (3, 1), (0, np.inf), (0, np.nan), 255, ('a', 'b'), (0, 1, 2)])
def test_a_range_without_meaning_is_refused(bad):
    for f in (set_grey_range, lambda o: to_rgb(Image.new('I;16', (2, 2)), o)):
        with pytest.raises(ValueError, match=r"grey_range: expected 'dtype', 'data' or two numbers \(lo, hi\)"): f(bad)
    assert to_rgb(Image.new('I;16', (2, 2))).getextrema() == ((0, 0),)*3

def test_one_value_throughout_is_black_and_nan_is_refused():
    assert to_rgb(Image.new('F', (3, 2), 7.), 'data').getextrema() == ((0, 0),)*3
    for v in (np.nan, np.inf):
        im = Image.fromarray(np.array([[0, v]], np.float32))
        for grey_range in ('data', (0, 1)):
            with pytest.raises(ValueError, match="mode F: expected finite values"): to_rgb(im, grey_range)

def test_16_bit_grey_of_pgm_and_png_has_its_whole_range(tmp_path):
    (tmp_path/'a.pgm').write_bytes(b'P5 2 1 4095\n' + np.array([0, 4095], '>u2').tobytes())   # Pillow gives mode I
    assert np.asarray(read_image(tmp_path/'a.pgm'))[0,:,0].tolist() == [0, 255]

def test_colours_of_16_bits_are_scaled_by_their_whole_range_or_refused(tmp_path):
    px = np.zeros((4, 4, 3), np.uint16)
    px[...,0] = 65535
    (tmp_path/'a.png').write_bytes(png48(px))
    assert np.asarray(read_image(tmp_path/'a.png'))[0,0].tolist() == [255, 0, 0]
    for grey_range in ('data', (0, 4095)):
        with pytest.raises(OSError, match="a.png cannot be read as an image .its colours have 16 bits, of"):
            read_image(tmp_path/'a.png', grey_range=grey_range)
    (tmp_path/'b.png').write_bytes(png48(px//16))
    for read in (read_image, lambda f: FileImage.create(f).load(), lambda f: FileImage.create(Image.open(f))):
        with pytest.warns(UserWarning, match="images of 16 bits use at most a quarter"): read(tmp_path/'b.png')

def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 257*100, 65535]], np.uint16)).save(tmp_path/'a.png')
    assert np.asarray(read_image(tmp_path/'a.png'))[0].tolist() == [[0]*3, [100]*3, [255]*3]

def test_transparency_is_dropped_and_the_colours_stay(tmp_path):
    px = np.dstack([PX, np.zeros(PX.shape[:2], np.uint8)])
    Image.fromarray(px).save(tmp_path/'a.png')
    assert np.array_equal(np.asarray(read_image(tmp_path/'a.png')), PX)
    p = Image.fromarray(PX).convert('P'); p.save(tmp_path/'p.png', transparency=0)
    assert np.array_equal(np.asarray(read_image(tmp_path/'p.png')), np.asarray(p.convert('RGB')))
    assert to_rgb(rgb := Image.fromarray(PX)) is rgb

@pytest.mark.parametrize('o', [1, 6])
@pytest.mark.parametrize('least', [(50, 30), (200, 150), (1000, 10), (399, 299)])
def test_draft_is_never_smaller_than_asked_for(tmp_path, o, least):
    big = Image.fromarray(PX).resize((800, 600) if o == 1 else (600, 800))
    big.save(tmp_path/'a.jpg', exif=exif(o))
    im = read_image(tmp_path/'a.jpg', draft=least)
    assert image_size(tmp_path/'a.jpg') == (800, 600)
    assert all(s >= min(n, full) for s,n,full in zip(im.size, least, (800, 600)))
    assert abs(im.width/im.height - 4/3) < .02
    assert im.size == ({(50, 30): (100, 75), (200, 150): (200, 150), (399, 299): (400, 300)}.get(least, (800, 600)))

def test_what_is_no_image_is_told(tmp_path):
    Image.fromarray(PX).save(tmp_path/'a.jpg')
    half = (tmp_path/'a.jpg').read_bytes()[:-300]
    for name,data in (('half.jpg', half), ('text.png', b'no image'), ('empty.jpg', b'')):
        (tmp_path/name).write_bytes(data)
        told = f"{name} cannot be read as an image .*`check_annotations` lists all such files"
        with pytest.raises(OSError, match=told):
            read_image(tmp_path/name)
    with pytest.raises(FileNotFoundError): read_image(tmp_path/'gone.jpg')

# --- grey levels

def test_grey_levels_are_the_values_of_the_richest_channel(tmp_path):
    levels = np.arange(40, dtype=np.uint8).repeat(5).reshape(10, 20)
    for im,n in ((levels, 40), (np.dstack([levels*0, levels, levels//2]), 40), (levels*0, 1), (levels > 9, 2)):
        im = Image.fromarray(im)
        assert grey_levels(im) == n
        im.save(tmp_path/'a.png')
        assert grey_levels(tmp_path/'a.png') == n
    assert grey_levels(Image.fromarray(PX)) > 200
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path/'12.png')
    with pytest.warns(UserWarning, match="16 grey levels"): assert grey_levels(tmp_path/'12.png') == 16
    with pytest.raises(FileNotFoundError): grey_levels(tmp_path/'gone.png')

# --- files of several images

STACKS = dict(tif='pages', gif='frames', webp='frames', png='frames')

@pytest.mark.parametrize('suffix', STACKS)
def test_a_file_of_several_images_is_refused_with_their_number(tmp_path, suffix):
    file,ims = tmp_path/f'a.{suffix}',[Image.fromarray(np.roll(PX, i, 0)) for i in range(3)]
    ims[0].save(file, save_all=True, append_images=ims[1:], **(dict(lossless=True) if suffix == 'webp' else {}))
    told = rf"holds 3 images \({STACKS[suffix]} 0 to 2\), expected one; save those that you need as separate files"
    for read in (read_image, image_size, FileImage.create, lambda f: FileImage.create(f.read_bytes()),
                 lambda f: FileImage.create(Image.open(f)), grey_levels):
        with pytest.raises(OSError, match=told): read(file)
    with pytest.raises(AnnotationError, match=told): size_of(file)   # what the readers use
    with Image.open(file) as im:
        im.seek(2)
        with pytest.raises(OSError, match=told): FileImage.create(im)
        assert im.tell() == 2
        page = im.convert('RGB').copy()
    assert np.array_equal(np.asarray(FileImage.create(page)), np.asarray(page))
    if suffix == 'tif': assert np.array_equal(np.asarray(page), np.roll(PX, 2, 0))
    ims[0].save(file, save_all=True, **(dict(lossless=True) if suffix == 'webp' else {}))
    assert image_size(file) == read_image(file).size == (36, 24)   # a stack of one is an image

def test_smaller_copies_and_other_views_of_an_image_are_not_counted(tmp_path):
    im = Image.fromarray(PX)
    with TiffImagePlugin.AppendingTiffWriter(tmp_path/'a.tif', new=True) as f:   # as GDAL writes overviews and masks
        for o,kind in ((im, 0), (im.resize((18, 12)), 1), (im.convert('1'), 4)):
            o.save(f, 'TIFF', tiffinfo={254: kind})
            f.newFrame()
    with Image.open(tmp_path/'a.tif') as o: assert o.n_frames == 3
    assert image_size(tmp_path/'a.tif') == (36, 24) and np.array_equal(np.asarray(read_image(tmp_path/'a.tif')), PX)
    im.save(tmp_path/'a.jpg', 'MPO', save_all=True, append_images=[im], quality=100)   # a phone's depth map
    with Image.open(tmp_path/'a.jpg') as o: assert (o.format, o.n_frames) == ('MPO', 2)
    assert read_image(tmp_path/'a.jpg').size == FileImage.create(tmp_path/'a.jpg').size == (36, 24)

# --- lossy formats

@pytest.mark.parametrize('suffix, kw, name', [
    ('jpg', {}, 'JPEG'), ('png', {}, None), ('bmp', {}, None), ('gif', {}, None), ('tif', {}, None),
    ('tif', dict(compression='tiff_lzw'), None), ('tif', dict(compression='jpeg'), 'TIFF with JPEG compression'),
    ('webp', {}, 'lossy WebP'), ('webp', dict(lossless=True), None), ('jp2', {}, 'JPEG 2000'), ('avif', {}, 'AVIF')])
@pytest.mark.parametrize('mode', ['RGB', 'RGBA'])
def test_pillows_format_says_whether_pixels_are_exact(tmp_path, suffix, kw, name, mode):
    if f'.{suffix}' not in Image.registered_extensions(): pytest.skip(f'this Pillow writes no {suffix}')
    im = Image.fromarray(PX)
    if mode == 'RGBA' and suffix not in ('jpg', 'bmp', 'gif') and name != 'TIFF with JPEG compression': im.putalpha(99)
    im.save(tmp_path/f'a.{suffix}', **kw)
    (tmp_path/f'a.{suffix}').rename(tmp_path/'a.png')   # whatever it is called
    for _ in range(2):
        with Image.open(tmp_path/'a.png') as im:
            assert lossy_format(im) == name
            im.load()   # still readable
