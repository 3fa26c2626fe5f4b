"Image files as they are shown: upright (EXIF orientation applied) and RGB, for any mode of the file"
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
    "`size` as text: 640x480"
    return f"{size[0]}x{size[1]}"

_ORIENTATION = 0x0112     # the EXIF tag
_WIDTH,_HEIGHT,_BITS,_KIND,_PHOTOMETRIC = 256,257,258,254,262   # TIFF's tags
_TURNED = {5, 6, 7, 8}    # its values that exchange width and height

def image_size(path) -> tuple[int,int]:
    """(w, h) in pixels of the image file at `path` as shown, EXIF orientation applied; only its header is read. Raises
    `OSError` that names the file if it is missing, not an image, or holds several"""
    with open_image(path) as im:
        try: return shown_size(im)
        except BROKEN as e: raise unreadable(path, e) from e

def shown_size(im) -> tuple[int,int]:
    "(w, h) of the open file `im` once it is upright"
    return stored_size(im)[::-1] if orientation(im) in _TURNED else im.size

def stored_size(im) -> tuple[int,int]:
    """(w, h) of the open file `im` as stored, before its EXIF orientation is applied. For a TIFF from its tags, since
    some versions of Pillow swap its `size` before it is loaded, and others do not"""
    tags = getattr(im, 'tag_v2', {})
    return (tags[_WIDTH], tags[_HEIGHT]) if _WIDTH in tags and _HEIGHT in tags else im.size

def orientation(im) -> int:
    """EXIF orientation, 1 to 8, of the open file `im`; 1: stored as shown, also if the file has none or its EXIF data
    are broken"""
    try: return im.getexif().get(_ORIENTATION, 1)
    except BROKEN: return 1

def upright(im:Image.Image) -> Image.Image:
    "The open file `im`, loaded, with its EXIF orientation applied; `im` itself if it is already upright"
    # Pillow maps an uncompressed file into memory with the `size` that it has already swapped, which mixes up the
    # pixels; it does not map an image without a file name
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
    grey_range='dtype', # 'dtype': the full range of 16 bits (12, if a TIFF says so) becomes 0..255;
                        # 'data': the smallest value of each image becomes 0, its largest 255;
                        # (lo, hi): lo becomes 0, hi 255, and values outside are clipped
):
    """Set how grey values of more than 8 bits are converted to 8 bits by default. `DataLoaders` store the setting when
    they are made, and export it with the learner.

    32-bit integers (mode I) and floating point numbers (mode F) have no range of their own: reading them with 'dtype'
    raises `ValueError`. Colours of 16 bits are always scaled by their full range, and raise with 'data' and (lo, hi)"""
    global _grey_range
    _grey_range = resolve_grey_range(grey_range)

def resolve_grey_range(grey_range):
    "`grey_range` as in `set_grey_range`, checked; for None the current setting"
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
    im:Image.Image,  # of any mode
    grey_range=None, # as in `set_grey_range`; None (default): its current setting, 'dtype' at first
) -> Image.Image:    # `im` itself if it is RGB
    """Convert `im` to mode RGB. Transparency is dropped, and premultiplied colours (modes La, RGBa) are divided by it.
    Raises `ValueError` that names the mode if its values have no range of their own"""
    if im.mode == 'RGB': return im
    if im.mode in ('I', 'F') or im.mode.startswith('I;16'): im = _to_8_bits(im, resolve_grey_range(grey_range))
    elif im.mode == 'P' and 'transparency' in im.info: im = im.convert('RGBA')
    elif im.mode in ('La', 'RGBa'): im = im.convert(im.mode.upper())
    return im.convert('RGB')

def _to_8_bits(im, grey_range):   # mode I, I;16* or F -> mode L
    v = np.asarray(im)
    # Pillow inverts WhiteIsZero for 8 bits only
    if im.mode.startswith('I;16') and getattr(im, 'tag_v2', {}).get(_PHOTOMETRIC) == 0: v = _largest(im) - v
    if grey_range == 'dtype':
        top = _largest(im)
        if top is None:
            kind = "32-bit integers" if im.mode == 'I' else "floating point numbers"
            raise ValueError(f"mode {im.mode} holds {kind}, here {v.min():g} to {v.max():g}, without a defined "
                             "white value; call set_grey_range((lo, hi)), or set_grey_range('data') for the range "
                             "of each image, before the DataLoaders are made, or pass grey_range=")
        if 0 < v.max() <= top//4: _warn_dark()
        return Image.fromarray((v.astype(np.int64)*255//top).astype(np.uint8))
    v = v.astype(np.float64)
    if not np.isfinite(v).all(): raise ValueError(f"mode {im.mode}: expected finite values, got nan or infinity")
    lo,hi = (v.min(), v.max()) if grey_range == 'data' else grey_range
    return Image.fromarray(((v - lo)*(255/((hi - lo) or 1.))).clip(0, 255).round().astype(np.uint8))

def _largest(im):
    "The value of white in mode I, I;16* or F; None if no convention defines it"
    if im.mode.startswith('I;16'): return 2**getattr(im, 'tag_v2', {}).get(_BITS, (16,))[0] - 1
    return 65535 if im.mode == 'I' and im.format in ('PNG', 'PPM') else None

def _warn_dark():   # a constant text, so that it is shown once instead of for each file
    warn("images of 16 bits use at most a quarter of their range, so they are dark (12-bit values are "
         "nearly black: 16 grey levels of 256); call set_grey_range((0, 4095)), or "
         "set_grey_range('data') for the range of each image, before the DataLoaders are made; `grey_levels` "
         "counts the levels of an image")

def decode_rgb(im:Image.Image, grey_range=None) -> Image.Image:
    "The open image `im` upright and RGB; itself if it is both"
    deep = _has_deep_colours(im)
    if deep and resolve_grey_range(grey_range) != 'dtype':
        raise ValueError("its colours have 16 bits, of which Pillow reads the high 8; save it with 8 bits to scale it "
                         "by another range")
    rgb = to_rgb(upright(im), grey_range)
    if deep and 0 < max(hi for _,hi in rgb.getextrema()) < 64: _warn_dark()
    return rgb

_DEEP = '16-bit colours'

def _has_deep_colours(im):
    """Whether the file of `im` has colours of 16 bits, of which Pillow reads the high bytes. Stored in `info`: it is
    only known from the tiles before loading, and a PNG is loaded to read its EXIF data"""
    tiles = getattr(im, 'tile', [])
    if tiles: im.info[_DEEP] = im.mode in ('RGB', 'RGBA') and any(';16' in str(o[3]) for o in tiles)
    return im.info.get(_DEEP, False)

# --- files

@checked(draft=WIDTH_HEIGHT, grey_range=_GREY_RANGE)
def read_image(
    path,                         # image file
    draft:tuple[int,int]=None,    # (w, h) in pixels of the image as shown: a JPEG may be decoded smaller, but not
                                  # below; None (default): full size
    grey_range=None,              # as in `to_rgb`
) -> Image.Image:                 # upright, RGB, loaded; of the file's size, or with `draft` a fraction of it
    """Read an image file. Raises `OSError` that names the file if it is missing, broken, truncated, or holds several
    images, or if its mode cannot be converted to RGB (`to_rgb`)"""
    with open_image(path) as im: return decode_image(im, path, draft, grey_range)

@checked(image=either(PATH, _PIL))
def grey_levels(
    image,   # path of an image file, or a PIL image; not of reduced size, since averaged pixels have more levels
) -> int:    # 1 to 256
    """Number of different 8-bit values in the channel of an image that has the most, after `to_rgb`. A photograph has
    more than 100; 16 or fewer in an image of 16 bits mean that it uses only 12 bits and is nearly black. Raises as
    `read_image`"""
    im = decode_rgb(image) if isinstance(image, Image.Image) else read_image(image)
    return int((np.reshape(im.histogram(), (3, 256)) > 0).sum(1).max())

def open_image(file, name=None) -> Image.Image:
    "Open `file`, a path or a binary file, without loading it. Raises `OSError` that names `name`, or the path"
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
    "Raise `OSError` that lists the pages if the file of the open image `im` holds several"
    try: n,what = _n_images(im),'pages' if im.format == 'TIFF' else 'frames'
    except BROKEN as e: raise unreadable(name, e) from e
    if n > 1: raise OSError(f"{name} holds {n} images ({what} 0 to {n - 1}), expected one; save those that you "
                            "need as separate files, or pass an opened one: im.seek(i); im.copy()")

def _n_images(im):
    """Number of images in the file of `im`, without those that belong to the first: other views and depth maps of a
    phone's JPEG (MPO), the layers of Photoshop, smaller copies and masks of a TIFF"""
    n = im.n_frames if getattr(im, 'is_animated', False) and im.format not in ('MPO', 'PSD') else 1
    if n == 1 or im.format != 'TIFF': return n
    at,kinds = im.tell(),[]
    for i in range(n):
        im.seek(i)
        kinds.append(im.tag_v2.get(_KIND, 0))
    im.seek(at)
    return max(sum(not k & 5 for k in kinds), 1)   # bit 0: a smaller copy, bit 2: a mask of another page

def decode_image(im, name, draft=None, grey_range=None) -> Image.Image:
    "The open file `im` upright and RGB; arguments as in `read_image`, `name` for messages"
    try:
        if draft is not None and im.format == 'JPEG':
            im.draft('RGB', draft[::-1] if shown_size(im) != im.size else draft)
        return decode_rgb(im, grey_range)
    except BROKEN as e: raise unreadable(name, e) from e

def bytes_of_jpeg(im) -> bytes|None:
    "The file of an open JPEG that is neither loaded nor reduced; None for all other images"
    fp = getattr(im, 'fp', None)
    if im.format != 'JPEG' or not im.tile or fp is None or fp.closed: return None
    at = fp.tell()
    fp.seek(0)
    data = fp.read()
    fp.seek(at)
    with Image.open(BytesIO(data)) as whole: return data if (whole.size, whole.mode) == (im.size, im.mode) else None

# formats that Pillow, or a plugin, may write with loss, and whose files do not tell
_LOSSY = {'JPEG': 'JPEG', 'MPO': 'JPEG', 'JPEG2000': 'JPEG 2000', 'AVIF': 'AVIF', 'HEIF': 'HEIF', 'JXL': 'JPEG XL',
          'tiff_jpeg': 'TIFF with JPEG compression', 'jpeg': 'TIFF with JPEG compression',
          'webp': 'TIFF with WebP compression'}

def lossy_format(im) -> str|None:
    "The name of the lossy format of the open file `im`, which is not loaded; None if its pixels are exact"
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

# errors of Pillow's plugins for broken files, including those of arithmetic on wrong numbers. The warning is raised if
# the user turns it into an error
BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError,
          EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)

def unreadable(name, e, todo=", or drop it (`check_annotations` lists all such files)") -> OSError:
    "The error for an image file `name` for which Pillow raised `e`; its `why` is only the reason"
    why = getattr(e, 'why', None) or brief_text(e) or type(e).__name__
    res = OSError(f"{name} cannot be read as an image ({why}); replace the file{todo}")
    res.why = why
    return res

def brief_text(e, n:int=200) -> str:
    "The message of an error, cut to `n` characters, since some quote the whole file"
    s = str(e)
    return s if len(s) <= n else f'{s[:n-3]}...'

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
          stat.S_IFDIR: "a folder"}

def check_regular(path):
    "Raise `OSError` that names `path` if it is a pipe, socket, device or folder: reading some of them never ends"
    try: mode = os.stat(path).st_mode
    except ValueError as e: raise OSError(f"{brief(str(path), 200)} is not a valid file name ({e})") from e   # a NUL
    if stat.S_ISREG(mode): return
    raise OSError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file; pass a file")

def read_bytes(path) -> bytes:
    "The bytes of a regular file. Raises `OSError` that names it"
    check_regular(path)
    return Path(path).read_bytes()
