"Class masks: the class of each value or colour of a mask file, and the class index of each pixel"
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from functools import cached_property
import hashlib, re
import numpy as np
from ..arguments import PATH, WIDTH_HEIGHT, brief, checked, instance
from .image import wh
from .errors import AnnotationError
from .image import BROKEN, lossy_format, open_image, unreadable, upright

__all__ = ['MaskFile', 'decode_class_mask']

# --- classes of values and colours

@dataclass(frozen=True, eq=False)
class MaskTable:
    "The classes of the values or colours of mask files; one table for all files of a data set"
    values:np.ndarray     # (k,) int32, ascending; a colour is 65536*r + 256*g + b
    indices:np.ndarray    # (k,) class index of each, 255: void; uint8, or int32 beyond 255
    colours:bool          # whether the values are colours

    @cached_property
    def digest(self) -> str:
        "The same for equal tables, in any process"
        h = hashlib.blake2b(f'{self.colours} {self.indices.dtype}'.encode(), digest_size=16)
        for o in (self.values, self.indices): h.update(np.ascontiguousarray(o))
        return h.hexdigest()

    @property
    def is_identity(self): return not self.colours and np.array_equal(self.values, self.indices)

    def same_as(self, other):
        "Whether the same values have the same class indices"
        return (self.colours == other.colours and np.array_equal(self.values, other.values) and
                np.array_equal(self.indices, other.indices))

    def lookup(self, v):  # -> class indices, whether the table has them; both with the shape of `v`
        at = np.searchsorted(self.values, v).clip(max=len(self.values) - 1)
        return self.indices[at],self.values[at] == v

    def decode(self, path):   # -> (h, w)
        v = mask_values(path, self.colours)
        if v.dtype.itemsize > 2: m,known = self.lookup(v)
        # there are fewer values than pixels: look up each value once
        else: m,known = (o[v] for o in self.lookup(np.arange(np.iinfo(v.dtype).max + 1)))
        if known.all(): return m
        what = 'colours' if self.colours else 'values'
        bad,n = np.unique(v[~known], return_counts=True)
        top = np.argsort(-n, kind='stable')[:5]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ''
        raise AnnotationError(f"mask {path}: {what} without a class: "
                              f"{', '.join(f'{self._text(bad[i])} ({n[i]} px)' for i in top)}{more}; expected "
                              f"{self._known()}; fix the mask, or add them to codes, colors or void")

    def _text(self, v): return str((int(v) >> 16, int(v) >> 8 & 255, int(v) & 255)) if self.colours else str(v)

    def _known(self):
        "The values in short: 0-10, 255"
        if self.colours: runs = [[v] for v in self.values]
        else: runs = np.split(self.values, np.flatnonzero(np.diff(self.values) != 1) + 1)
        text = [self._text(o[0]) + (f'-{self._text(o[-1])}' if len(o) > 1 else '') for o in runs]
        return ', '.join(text[:12]) + (', ...' if len(text) > 12 else '')

@dataclass(frozen=True, eq=False)
class MaskFile:
    "A mask file with other values than class indices; `decode_class_mask` converts them with `table`"
    path:Path       # of the file
    table:MaskTable # classes of its values or colours
    def __post_init__(self):
        PATH('path', self.path)
        instance(MaskTable, what="a table as `read_masks` makes it from codes and colors")('table', self.table)
    def __repr__(self): return f'MaskFile({self.path})'
    def same_as(
        self,
        other:MaskFile, # the one to compare with
    ) -> bool:
        "Whether path and table are equal"
        return Path(self.path) == Path(other.path) and self.table.same_as(other.table)

@checked(size=WIDTH_HEIGHT)
def decode_class_mask(
    mask,                     # `Annotation.mask`: a path, a `MaskFile`, or (h, w) class indices
    size:tuple[int,int]=None, # (w, h) that the mask must have, that of the image; None (default): any
) -> np.ndarray:              # (h, w) class indices, 255: void; uint8, or int32 if the source has more than 8 bits
    """A class mask as an array, with EXIF orientation applied. Raises `OSError` if the file is missing, broken, or
    holds several images, and `AnnotationError` if its format is lossy, its size is not `size`, or it has no indices"""
    file = mask.path if isinstance(mask, MaskFile) else mask
    if isinstance(mask, MaskFile): m = mask.table.decode(file)
    elif PATH.ok(mask): m = mask_values(file)
    else: file,m = 'array',np.asarray(mask)
    if m.ndim != 2 or m.dtype.kind not in 'bui':
        raise AnnotationError(f"mask: expected a path or (h, w) class indices, got {brief(mask)}")
    if size is not None and m.shape != tuple(size)[::-1]:
        raise AnnotationError(f"mask {file}: expected the size of the image, {wh(size)}, got {wh(m.shape[::-1])}")
    if m.dtype != np.uint8: return m.astype(np.uint8 if m.dtype == bool else np.int32)
    return m if m.flags.writeable else m.copy()   # torch cannot use the read-only arrays of an Annotation

def _stretch(im):
    """(largest value of the file, the value that Pillow maps it to) for an open grey image whose values Pillow scales
    to the full range: PNG and TIFF of 2 and 4 bits, PGM of another maximum; None for others. Only known before the
    pixels are loaded"""
    if not im.tile: return None
    kind,args = im.tile[0][0],im.tile[0][3]
    if im.format == 'PPM': return (args[1], 255 if im.mode == 'L' else 65535) if kind.startswith('ppm') else None
    raw = args if isinstance(args, str) else args[0] if isinstance(args, tuple) and args else None
    bits = re.match('L;([24])', raw) if isinstance(raw, str) else None
    return (2**int(bits[1]) - 1, 255) if bits else None

_COLOURS = '1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA'   # the modes that convert to RGBA without loss

def mask_values(path, colours=False, todo="pass the class of each colour as colors={(r, g, b): name}"):
    "The values of a mask file, or its colours as numbers; (h, w) uint8, uint16 or int32"
    try:
        with open_image(path) as im:
            lossy = lossy_format(im)
            stretch = _stretch(im)
            im = upright(im)
            if colours and im.mode in _COLOURS: im = im.convert('RGBA')
            v,mode = np.array(im),im.mode   # not `asarray`: torch cannot use a read-only array
    except FileNotFoundError: raise
    except BROKEN as e: raise unreadable(f"mask {path}", e, todo='') from e
    if lossy is not None:
        raise AnnotationError(f"mask {path} is a {lossy}, a lossy format that changes classes and object ids; save "
                              "masks as png from the start, or restore their values and save them as png")
    if colours:
        if mode == 'RGBA': return (v.view('>u4')[...,0] >> 8).astype(np.int32)   # without the alpha byte
        raise AnnotationError(f"mask {path} has mode {mode}, which has no 8-bit colours; "
                              "pass values, not colours, as colors=, or convert the file to RGB")
    if mode == '1': return v.astype(np.uint8)
    if mode in ('L', 'I') and stretch is not None:
        most,white = stretch
        return ((v.astype(np.int64)*(2*most) + white)//(2*white)).astype(v.dtype)   # undoes Pillow's rounding
    if mode in ('L', 'P', 'I') or mode.startswith('I;16'): return v
    raise AnnotationError(f"mask {path} holds colours (mode {mode}), not one integer per pixel; {todo}")
