import numpy as np, pytest
from PIL import Image
from vision_tasks.data.blocks import FileImage
from vision_tasks.data.image import (grey_levels, image_size, read_image, shown_size, stored_size, to_rgb,
                                     upright)

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

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'RGB', 'CMYK'])
def test_every_mode_arrives_as_rgb_of_its_colour(tmp_path, mode):
    # (204, 51, 51) is a colour of the palette, so that 'P' keeps it
    rgb = (255, 255, 255) if mode == '1' else (200, 200, 200) if mode[0] == 'L' else (204, 51, 51)
    colour = np.full((8, 8, 3), rgb, np.uint8)
    file = tmp_path/('a.jpg' if mode == 'CMYK' else 'a.png')
    Image.fromarray(colour).convert(mode).save(file, **(dict(quality=100) if mode == 'CMYK' else {}))
    im = read_image(file)
    assert im.mode == 'RGB' and np.abs(np.asarray(im).astype(int) - colour).max() <= 12

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

def test_what_is_no_picture_is_told(tmp_path):
    Image.fromarray(PX).save(tmp_path/'a.jpg')
    half = (tmp_path/'a.jpg').read_bytes()[:-300]
    for name,data in (('half.jpg', half), ('text.png', b'no picture'), ('empty.jpg', b'')):
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
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(tmp_path/'12.png')
    assert grey_levels(tmp_path/'12.png') == 16
    with pytest.raises(FileNotFoundError): grey_levels(tmp_path/'gone.png')
