"Image files as everybody sees them: upright (EXIF orientation applied) and RGB, whatever the file's mode"
from __future__ import annotations
import numpy as np
from PIL import Image, ImageOps

__all__ = ['read_image', 'to_rgb', 'grey_levels']   # `image_size` and the rest are ours alone: fastai has one too

_ORIENTATION = 0x0112     # the EXIF tag
_WIDTH,_HEIGHT = 256,257  # TIFF's tags
_TURNED = {5, 6, 7, 8}    # its values that exchange width and height

def image_size(path) -> tuple[int,int]:
    "(w, h) in pixels of the image file at `path` as shown, EXIF orientation applied; only its header is read"
    with Image.open(path) as im: return shown_size(im)

def shown_size(im) -> tuple[int,int]:
    "(w, h) of the open file `im` once it is upright"
    return stored_size(im)[::-1] if orientation(im) in _TURNED else im.size

def stored_size(im) -> tuple[int,int]:
    """(w, h) of the open file `im` as its rows and columns are stored. A TIFF's tags say it: while it is not loaded its
    `size` is exchanged in some versions of Pillow and not in others"""
    tags = getattr(im, 'tag_v2', {})
    return (tags[_WIDTH], tags[_HEIGHT]) if _WIDTH in tags and _HEIGHT in tags else im.size

def orientation(im) -> int:
    """EXIF orientation, 1..8, of the open file `im`; 1 = stored as shown, also where the file does not say or its EXIF
    data are broken"""
    try: return im.getexif().get(_ORIENTATION, 1)
    except _BROKEN: return 1

def upright(im:Image.Image) -> Image.Image:
    "The open file `im`, loaded, its EXIF orientation applied; `im` itself where there is nothing to do"
    # Pillow maps the rows of an uncompressed file into memory by the `size` that it has exchanged already, and mixes
    # the pixels up; it cannot map an image that has no file name
    name = getattr(im, 'filename', '')
    if stored_size(im) != im.size: im.filename = ''
    im.load()
    if name: im.filename = name
    return im if orientation(im) == 1 else ImageOps.exif_transpose(im)

def to_rgb(im:Image.Image) -> Image.Image:
    "`im` in mode RGB: 16-bit grey is scaled to 8 bit (`convert` clips it), transparency is dropped"
    if im.mode == 'RGB': return im
    if im.mode.startswith('I;16') or im.mode == 'I':
        im = Image.fromarray((np.asarray(im).astype(np.int64).clip(0, 65535)//257).astype(np.uint8))
    elif im.mode == 'P' and 'transparency' in im.info: im = im.convert('RGBA')
    return im.convert('RGB')

def read_image(
    path,                         # image file
    draft:tuple[int,int]=None,    # (w, h) in pixels of the image as shown: a JPEG may be decoded smaller, but not below
                                  # this
) -> Image.Image:                 # upright, RGB, loaded; its size is the file's, or a fraction of it with `draft`
    "The picture of an image file. Raises `OSError` that names the file where it is missing, broken or truncated"
    with open_image(path) as im: return decode_image(im, path, draft)

def grey_levels(
    image,   # path of an image file, or a PIL image; not one of reduced size, whose averaged pixels have more levels
) -> int:    # 1 to 256
    """Number of different 8-bit values that an image uses, in the channel that has the most, after the conversion of
    `to_rgb`. A photograph has more than 100; 16 or fewer in an image of 16 bits mean that only 12 of its bits are used,
    and that it is nearly black. Raises as `read_image`"""
    im = to_rgb(image) if isinstance(image, Image.Image) else read_image(image)
    return int((np.reshape(im.histogram(), (3, 256)) > 0).sum(1).max())

def open_image(file, name=None) -> Image.Image:
    "Pillow's lazy image of `file`, a path or a binary file; an error names `name`, or the path"
    try: return Image.open(file)
    except FileNotFoundError: raise
    except _BROKEN as e: raise _unreadable(name or file, e) from e

def decode_image(im, name, draft=None) -> Image.Image:
    "The open file `im` upright and RGB; arguments as of `read_image`, `name` is for the error"
    try:
        if draft is not None and im.format == 'JPEG':
            im.draft('RGB', draft[::-1] if shown_size(im) != im.size else draft)
        return to_rgb(upright(im))
    except _BROKEN as e: raise _unreadable(name, e) from e

_BROKEN = OSError, SyntaxError, ValueError   # Pillow raises SyntaxError for a broken PNG chunk

def _unreadable(name, e):
    return OSError(f"{name} cannot be read as an image ({e}); replace the file, or leave it out "
                   "(`check_annotations` lists all such files)")
