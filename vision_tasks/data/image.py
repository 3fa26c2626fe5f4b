"Image files as everybody sees them: upright (EXIF orientation applied) and RGB, whatever the file's mode"
from __future__ import annotations
from pathlib import Path
import numpy as np
from PIL import Image, ImageOps

__all__ = ['image_size', 'read_image', 'to_rgb']

_ORIENTATION = 0x0112     # the EXIF tag
_TURNED = {5, 6, 7, 8}    # its values that exchange width and height

def image_size(path) -> tuple[int,int]:
    "(w, h) in pixels of the image file at `path` as shown, EXIF orientation applied; only its header is read"
    with Image.open(path) as im: return _shown_size(im)

def _shown_size(im) -> tuple[int,int]:
    "(w, h) of the open file `im` once it is upright"
    return im.size[::-1] if im.getexif().get(_ORIENTATION) in _TURNED else im.size

def to_rgb(im:Image.Image) -> Image.Image:
    "`im` in mode RGB: 16-bit grey is scaled to 8 bit (`convert` clips it), transparency is dropped"
    if im.mode == 'RGB': return im
    if im.mode.startswith('I;16') or im.mode == 'I':
        im = Image.fromarray((np.asarray(im).astype(np.int64).clip(0, 65535)//257).astype(np.uint8))
    elif im.mode == 'P' and 'transparency' in im.info: im = im.convert('RGBA')
    return im.convert('RGB')

def read_image(
    path,                         # image file
    draft:tuple[int,int]=None,    # (w, h) in pixels of the image as shown: a JPEG may be decoded smaller, but not below this
) -> Image.Image:                 # upright, RGB, loaded; its size is the file's, or a fraction of it with `draft`
    "The picture of an image file. Raises `OSError` that names the file where it is missing, broken or truncated"
    try:
        with Image.open(path) as im:
            if draft is not None and im.format == 'JPEG':
                im.draft('RGB', draft[::-1] if _shown_size(im) != im.size else draft)
            return to_rgb(ImageOps.exif_transpose(im))
    except FileNotFoundError: raise
    except (OSError, SyntaxError, ValueError) as e:   # Pillow raises SyntaxError for a broken PNG chunk
        raise OSError(f"{path} cannot be read as an image ({e}); replace the file, or leave it out "
                      "(`check_annotations` lists all such files)") from e
