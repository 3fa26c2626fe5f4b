"Image files as everybody sees them: upright (EXIF orientation applied) and RGB, whatever the file's mode"
from __future__ import annotations
from collections.abc import Mapping
from pathlib import Path
from io import BytesIO
import os, stat, struct, zlib
import numpy as np
from PIL import Image, ImageOps
from ..arguments import PATH, WIDTH_HEIGHT, Kind, brief, checked, either, instance
from ..warning import warn

__all__ = ['set_grey_range', 'to_rgb', 'read_image', 'grey_levels']

def wh(size) -> str:
    "`size` as people write it: 640x480"
    return f"{size[0]}x{size[1]}"

_ORIENTATION = 0x0112     # the EXIF tag
_WIDTH,_HEIGHT,_BITS,_KIND,_PHOTOMETRIC = 256,257,258,254,262   # TIFF's tags
_TURNED = {5, 6, 7, 8}    # its values that exchange width and height

def image_size(path) -> tuple[int,int]:
    """(w, h) in pixels of the image file at `path` as shown, EXIF orientation applied; only its header is read. Raises
    `OSError` that names the file where it is missing, no image, or holds several"""
    with open_image(path) as im:
        try: return shown_size(im)
        except BROKEN as e: raise unreadable(path, e) from e

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
    except BROKEN: return 1

def upright(im:Image.Image) -> Image.Image:
    "The open file `im`, loaded, its EXIF orientation applied; `im` itself where there is nothing to do"
    # Pillow maps the rows of an uncompressed file into memory by the `size` that it has exchanged already, and mixes
    # the pixels up; it cannot map an image that has no file name
    name = getattr(im, 'filename', '')
    if stored_size(im) != im.size: im.filename = ''
    im.load()
    if name: im.filename = name
    return im if orientation(im) == 1 else ImageOps.exif_transpose(im)

# --- grey values of more than 8 bits

_grey_range = 'dtype'

_PIL = instance(Image.Image, what="a PIL image")
_GREY_RANGE = Kind("'dtype', 'data' or two numbers (lo, hi) with lo < hi", lambda o: _is_grey_range(o))

@checked(grey_range=_GREY_RANGE)
def set_grey_range(
    grey_range='dtype', # 'dtype': the whole range of 16 bits (12, where a TIFF says so) becomes 0..255;
                        # 'data': each image's own smallest value becomes 0, its largest 255;
                        # (lo, hi): these values do, and what is outside becomes 0 or 255
):
    """How grey values of more than 8 bits become 8 bits wherever nothing else is said. `DataLoaders` keep what was set
    when they were made, and export it with the learner.

    Whole numbers of 32 bits (mode I) and floating point numbers (mode F) have no range of their own: with 'dtype' they
    are refused. Colours of 16 bits are scaled by their whole range, and refused with 'data' and (lo, hi)"""
    global _grey_range
    _grey_range = resolve_grey_range(grey_range)

def resolve_grey_range(grey_range):
    "`grey_range` as of `set_grey_range`, checked; what was set for `None`"
    if grey_range is None: return _grey_range
    grey_range = _GREY_RANGE('grey_range', grey_range)
    return grey_range if isinstance(grey_range, str) else tuple(map(float, grey_range))

def _is_grey_range(o):
    if isinstance(o, (str, bytes, Mapping)): return o in ('dtype', 'data')
    try: lo,hi = map(float, o)
    except (TypeError, ValueError, OverflowError): return False
    return -np.inf < lo < hi < np.inf

@checked(im=_PIL, grey_range=_GREY_RANGE)
def to_rgb(
    im:Image.Image,
    grey_range=None, # as of `set_grey_range`; None (default): what was set there, 'dtype' at first
) -> Image.Image:    # itself where it is RGB
    """`im` in mode RGB. Transparency is dropped, and colours that were multiplied by it (modes La, RGBa) are divided.
    Raises `ValueError` that names the mode where its values have no range of their own"""
    if im.mode == 'RGB': return im
    if im.mode in ('I', 'F') or im.mode.startswith('I;16'): im = _to_8_bits(im, resolve_grey_range(grey_range))
    elif im.mode == 'P' and 'transparency' in im.info: im = im.convert('RGBA')
    elif im.mode in ('La', 'RGBa'): im = im.convert(im.mode.upper())
    return im.convert('RGB')

def _to_8_bits(im, grey_range):   # mode I, I;16* or F -> mode L
    v = np.asarray(im)
    # Pillow turns WhiteIsZero round for 8 bits only
    if im.mode.startswith('I;16') and getattr(im, 'tag_v2', {}).get(_PHOTOMETRIC) == 0: v = _largest(im) - v
    if grey_range == 'dtype':
        top = _largest(im)
        if top is None:
            kind = "32-bit whole numbers" if im.mode == 'I' else "floating point numbers"
            raise ValueError(f"mode {im.mode} holds {kind}, here {v.min():g} to {v.max():g}, and no file says which of "
                             "them is white; call set_grey_range((lo, hi)), or set_grey_range('data') for the range "
                             "of each image, before the DataLoaders are made, or pass grey_range=")
        if 0 < v.max() <= top//4: _warn_dark()
        return Image.fromarray((v.astype(np.int64)*255//top).astype(np.uint8))
    v = v.astype(np.float64)
    if not np.isfinite(v).all(): raise ValueError(f"mode {im.mode}: expected finite values, got nan or infinity")
    lo,hi = (v.min(), v.max()) if grey_range == 'data' else grey_range
    return Image.fromarray(((v - lo)*(255/((hi - lo) or 1.))).clip(0, 255).round().astype(np.uint8))

def _largest(im):
    "The value of white in mode I, I;16* or F; `None` where no convention says so"
    if im.mode.startswith('I;16'): return 2**getattr(im, 'tag_v2', {}).get(_BITS, (16,))[0] - 1
    return 65535 if im.mode == 'I' and im.format in ('PNG', 'PPM') else None

def _warn_dark():   # always the same text, so that it is shown once and not for each file
    warn("images of 16 bits use no more than a quarter of their range, so that they are dark (values of 12 "
         "bits are nearly black: 16 grey levels of 256); call set_grey_range((0, 4095)), or "
         "set_grey_range('data') for the range of each image, before the DataLoaders are made; `grey_levels` "
         "counts what an image uses")

def decode_rgb(im:Image.Image, grey_range=None) -> Image.Image:
    "The opened image `im` upright and RGB; itself where it is both"
    deep = _has_deep_colours(im)
    if deep and resolve_grey_range(grey_range) != 'dtype':
        raise ValueError("its colours have 16 bits, of which Pillow keeps the high 8; save it with 8 bits to scale it "
                         "by another range")
    rgb = to_rgb(upright(im), grey_range)
    if deep and 0 < max(hi for _,hi in rgb.getextrema()) < 64: _warn_dark()
    return rgb

_DEEP = '16-bit colours'

def _has_deep_colours(im):
    """Whether the file of `im` has colours of 16 bits, of which Pillow keeps the high bytes. Noted in `info`: only the
    tiles of a file that is not loaded tell it, and a PNG is loaded to look for EXIF data"""
    tiles = getattr(im, 'tile', [])
    if tiles: im.info[_DEEP] = im.mode in ('RGB', 'RGBA') and any(';16' in str(o[3]) for o in tiles)
    return im.info.get(_DEEP, False)

# --- files

@checked(draft=WIDTH_HEIGHT, grey_range=_GREY_RANGE)
def read_image(
    path,                         # image file
    draft:tuple[int,int]=None,    # (w, h) in pixels of the image as shown: a JPEG may be decoded smaller, but not below
                                  # this
    grey_range=None,              # as of `to_rgb`
) -> Image.Image:                 # upright, RGB, loaded; its size is the file's, or a fraction of it with `draft`
    """The image of a file. Raises `OSError` that names the file where it is missing, broken, truncated, or holds
    several images, and where its mode cannot become RGB (`to_rgb`)"""
    with open_image(path) as im: return decode_image(im, path, draft, grey_range)

@checked(image=either(PATH, _PIL))
def grey_levels(
    image,   # path of an image file, or a PIL image; not one of reduced size, whose averaged pixels have more levels
) -> int:    # 1 to 256
    """Number of different 8-bit values that an image uses, in the channel that has the most, after the conversion of
    `to_rgb`. A photograph has more than 100; 16 or fewer in an image of 16 bits mean that only 12 of its bits are used,
    and that it is nearly black. Raises as `read_image`"""
    im = decode_rgb(image) if isinstance(image, Image.Image) else read_image(image)
    return int((np.reshape(im.histogram(), (3, 256)) > 0).sum(1).max())

def open_image(file, name=None) -> Image.Image:
    "Pillow's lazy image of `file`, a path or a binary file; an error names `name`, or the path"
    name = name or file
    if isinstance(file, (str, os.PathLike)): check_regular(file)
    try: im = Image.open(file)
    except FileNotFoundError: raise
    except BROKEN as e: raise unreadable(name, e) from e
    try:
        check_single(im, name)
        _has_deep_colours(im)
    except OSError:
        im.close()
        raise
    most = Image.MAX_IMAGE_PIXELS
    if most and im.width*im.height > most:   # Pillow's own warning does not name the file
        warn(f"{name} has {im.width*im.height} pixels, more than Image.MAX_IMAGE_PIXELS = {most}; raise that number if "
             "you trust the file", Image.DecompressionBombWarning)
    return im

def check_single(im, name):
    "Raise `OSError` that names the pages where the opened image `im` is one of several in its file"
    try: n,what = _n_images(im),'pages' if im.format == 'TIFF' else 'frames'
    except BROKEN as e: raise unreadable(name, e) from e
    if n > 1: raise OSError(f"{name} holds {n} images ({what} 0 to {n - 1}), and one was expected; save those that "
                            "count as files of their own, or pass one opened: im.seek(i); im.copy()")

def _n_images(im):
    """How many images are in the file of `im`. What belongs to the first is not counted: other views and depth maps of
    a phone's JPEG (MPO), the layers of Photoshop, smaller copies and masks of a TIFF"""
    n = im.n_frames if getattr(im, 'is_animated', False) and im.format not in ('MPO', 'PSD') else 1
    if n == 1 or im.format != 'TIFF': return n
    at,kinds = im.tell(),[]
    for i in range(n):
        im.seek(i)
        kinds.append(im.tag_v2.get(_KIND, 0))
    im.seek(at)
    return max(sum(not k & 5 for k in kinds), 1)   # bit 0: a smaller copy, bit 2: a mask of another page

def decode_image(im, name, draft=None, grey_range=None) -> Image.Image:
    "The open file `im` upright and RGB; arguments as of `read_image`, `name` is for the error"
    try:
        if draft is not None and im.format == 'JPEG':
            im.draft('RGB', draft[::-1] if shown_size(im) != im.size else draft)
        return decode_rgb(im, grey_range)
    except BROKEN as e: raise unreadable(name, e) from e

def bytes_of_jpeg(im) -> bytes|None:
    "The file behind an opened JPEG that is as it was opened: neither loaded nor made smaller. `None` for all others"
    fp = getattr(im, 'fp', None)
    if im.format != 'JPEG' or not im.tile or fp is None or fp.closed: return None
    at = fp.tell()
    fp.seek(0)
    data = fp.read()
    fp.seek(at)
    with Image.open(BytesIO(data)) as whole: return data if (whole.size, whole.mode) == (im.size, im.mode) else None

# the formats that Pillow, or a plugin of it, writes with loss, and whose files do not say where there was none
_LOSSY = {'JPEG': 'JPEG', 'MPO': 'JPEG', 'JPEG2000': 'JPEG 2000', 'AVIF': 'AVIF', 'HEIF': 'HEIF', 'JXL': 'JPEG XL',
          'tiff_jpeg': 'TIFF with JPEG compression', 'jpeg': 'TIFF with JPEG compression',
          'webp': 'TIFF with WebP compression'}

def lossy_format(im) -> str|None:
    "The name of the lossy format of the open file `im`, which is not loaded; `None` where its pixels are exact"
    if im.format == 'TIFF': return _LOSSY.get(im.info.get('compression'))
    if im.format != 'WEBP': return _LOSSY.get(im.format)
    at = im.fp.tell()
    im.fp.seek(0)
    data = im.fp.read()
    im.fp.seek(at)
    return 'lossy WebP' if 'VP8 ' in _webp_chunks(data, 12) else None

def _webp_chunks(data, i):
    "The names of the chunks of a WebP file from byte `i` on, those in the frames of an animation too"
    while i + 8 <= len(data):
        name,n = data[i:i+4].decode('latin-1'),int.from_bytes(data[i+4:i+8], 'little')
        yield name
        if name == 'ANMF': yield from _webp_chunks(data[:i+8+n], i + 8 + 16)
        i += 8 + n + n%2

# what Pillow's plugins raise for broken files: whatever their arithmetic on a wrong number gives. The warning is an
# error where the user makes it one
BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError,
          EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)

def unreadable(name, e, todo=", or drop it (`check_annotations` lists all such files)") -> OSError:
    "The error for an image file `name` at which Pillow raised `e`; its `why` is the reason alone"
    why = getattr(e, 'why', None) or brief_text(e) or type(e).__name__
    res = OSError(f"{name} cannot be read as an image ({why}); replace the file{todo}")
    res.why = why
    return res

def brief_text(e, n:int=200) -> str:
    "What an error says, cut to `n` characters: some quote the whole file"
    s = str(e)
    return s if len(s) <= n else f'{s[:n-3]}...'

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
          stat.S_IFDIR: "a folder"}

def check_regular(path):
    "Raise `OSError` that names `path` where it is a pipe, socket, device or folder: reading some of them never ends"
    try: mode = os.stat(path).st_mode
    except ValueError as e: raise OSError(f"{brief(str(path), 200)} cannot be a file's name ({e})") from e   # a NUL
    if stat.S_ISREG(mode): return
    raise OSError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file; name a file")

def read_bytes(path) -> bytes:
    "The bytes of a regular file. Raises `OSError` that names it"
    check_regular(path)
    return Path(path).read_bytes()
