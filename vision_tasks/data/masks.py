"""Masks in files: for semantic segmentation one an image, whose pixels are class indices, other values, or colours; for
instances one an image, whose pixels are the ids of objects, or one an object"""
from __future__ import annotations
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
import os
from pathlib import Path
import re
import numpy as np
from PIL import Image
from ..arguments import (FUNCTION, PATH, PATHS, TEXT, WIDTH_HEIGHT, Kind, brief, checked, choice, either,
                         instance, is_whole, nearest, several, whole)
from .annotation import Annotation, AnnotationError, unturned, wh
from .image import BROKEN, lossy_format, open_image, unreadable, upright
from .reading import inside_of, read_all, read_yaml, size_of
from .writing import check_complete, check_outputs, writing_set
from ..ops.masks import decode_mask, encode_instances, encode_rle, mask_bbox

__all__ = ['read_masks', 'read_instance_masks', 'write_masks', 'write_instance_masks', 'read_codes',
           'decode_class_mask', 'MaskFile', 'VOID']

VOID = 255   # the class index of what is not classified; no class has it

_FOLDER  = Kind("a folder", PATH.ok)
_IMAGES  = either(_FOLDER, PATHS)
_MASKS   = either(_FOLDER, several(either(choice(None), PATH, PATHS), "a list of paths, beside a list of images"),
                  Kind("None, beside mask_of", lambda o: o is None))
_CODES   = either(several(Kind("a name", lambda o: isinstance(o, str)), "a list of names"),
                  instance(Mapping, what="{value: name}"), Kind("a yaml file of either", PATH.ok))
_COLORS  = Kind("{value or (r, g, b): name or index}, or a list of values or colours in the order of codes",
                lambda o: isinstance(o, (Mapping, list, tuple)) or isinstance(o, np.ndarray) and o.ndim > 0)
_VOID    = Kind("a value, a colour (r, g, b), or a list of such, () for none",
                lambda o: is_whole(o) or isinstance(o, (list, tuple)) or isinstance(o, np.ndarray) and o.ndim > 0)
_NO_OBJECT = either(whole(None), several(whole(None), "whole numbers, () for none"))

@checked(images=_IMAGES, masks=_MASKS, codes=_CODES, mask_of=FUNCTION, colors=_COLORS, void=_VOID)
def read_masks(
    images,               # folder of the pictures, or a list of their paths
    masks,                # folder of the masks; or a list of their paths, beside a list of pictures
    codes,                # names of the classes, in the order of their indices; or {value in the files: name}, whose
                          # order is that of the indices; or a yaml file of either, as of `read_codes`
    mask_of=None,         # path of a picture -> path of its mask, absolute or from the folder `masks`, which may then
                          # be None; None = the file in `masks` whose stem is the picture's
    colors=None,          # what stands in the files for a class: {(r, g, b) or value: name or index}, or a list of
                          # colours or values in the order of `codes`; None = the indices, or the values of `codes`
    void=None,            # value(s) that become 255, or colour(s) where `colors` has such; () = none; None = the value
                          # 255, unless it is a class, and no colour
    split:str=None,       # 'train', 'valid' or 'test': what all these pictures are for; None = not said
    on_error:str='raise', # 'raise' `AnnotationError` at the first image that cannot be read, or 'drop' such images and
                          # count them
    allow_outside:bool=False, # whether links in the folders that lead out of them are followed; paths that you pass may
                          # lie anywhere
) -> list[Annotation]:    # in the order of the list, or of the files' names
    """Pictures with class masks. Every mask is read once, in threads: sizes must agree, and a value or colour without a
    class is an error that counts its pixels; so is a mask without a picture where `images` is a folder. `mask` is the
    file's path where the file holds the indices, otherwise a `MaskFile`; `decode_class_mask` reads both when they are
    needed. A palette file's values are its indices, or its colours where `colors` has such; transparency says nothing.
    A mask lies on the picture as shown (EXIF applied to either). Lossy formats (JPEG) are refused, since they blur
    classes into others.

    Files of 0 and 255 are ambiguous, for 255 is void unless said otherwise: `colors=[0, 255]` makes two classes of
    them. A trimap of 1, 2 and 3 = border: `codes={1: 'pet', 2: 'background'}, void=3`"""
    named = _values_of(codes)
    table = _mask_table(named, colors, void)
    pairs,seen = _pairs(images, masks, mask_of),set()
    _check_complete(pairs)
    inside = _insides(images, masks, mask_of, allow_outside)
    anns = read_all(lambda o: _read(*o, table, split, seen, inside), pairs, on_error)
    if void is None and colors is None and VOID in seen and seen <= {0, VOID}:
        first = brief(next(iter(named.values())))
        raise AnnotationError(f"all {len(anns)} masks in {masks!s:.80} hold nothing but {first} "
                              "and the value 255, which is void unless said otherwise; write colors=[0, 255] where "
                              "0 and 255 are the two classes, void=255 where 255 is void indeed")
    return anns

@checked(images=_IMAGES, masks=_MASKS, label=TEXT, mask_of=FUNCTION, void=_NO_OBJECT)
def read_instance_masks(
    images,               # as of `read_masks`
    masks,                # as of `read_masks`; in a list of masks an element is also what `mask_of` may return
    label:str,            # class name of all objects, since the files have no classes
    mask_of=None,         # path of an image -> path of its id mask; or a list of paths, or the path of a folder, of
                          # files with one object each, which may be empty. Absolute, or from the folder `masks`
    void=(),              # value(s) that are no object, beside 0: 255 is the borders in PASCAL VOC's SegmentationObject
    split:str=None,       # as of `read_masks`
    on_error:str='raise', # as of `read_masks`
    allow_outside:bool=False, # as of `read_masks`
) -> list[Annotation]:    # as of `read_masks`
    """Images with the objects of their id masks: a value of the file is the id of one object, in however many pieces;
    ids may have gaps, and 0 is none. The objects are in the order of their ids, with tight boxes and RLE masks. An
    image whose mask is 0 throughout has no objects. A palette file's values are its indices.

    Where each object has a file of its own, all of one value other than 0, objects are in the order of the list, or of
    the files' names, and may overlap: `read_instance_masks(Path('stage1_train').glob('*/images/*.png'), None,
    'nucleus', mask_of=lambda p: p.parents[1]/'masks')` reads the 2018 Data Science Bowl.

    Raises `AnnotationError` for masks of another size, in a lossy format (JPEG), or of several values where one object
    is expected"""
    void = [void] if is_whole(void) else list(void)
    pairs,inside = _pairs(images, masks, mask_of),_insides(images, masks, mask_of, allow_outside)
    _check_complete(pairs)
    read = lambda o: _read_instances(*o, label, void, split, inside, allow_outside)
    return read_all(read, pairs, on_error)

@checked()
def read_codes(
    fname,               # yaml file with `classes` or `names`: a list, or a table of values and names
) -> dict[int,str]:      # value in the mask files -> name of the class
    """The classes of mask files, for `read_masks`; `list(codes.values())` is the vocab. Values may skip numbers. Names
    are text as it stands, `no` and `007` too"""
    fname = Path(fname)
    try: data = read_yaml(fname)
    except FileNotFoundError:
        raise AnnotationError(f"{fname}: no such yaml file; "
                              "codes are a list of names, {value: name}, or such a file") from None
    found = [data[k] for k in ('classes', 'names') if k in data] if isinstance(data, dict) else []
    if len(found) != 1 or not isinstance(found[0], (list, dict)):
        what = brief(sorted(data) if isinstance(data, dict) else data)
        raise AnnotationError(f"{fname}: expected `classes` or `names`, a list or a table of values and names, "
                              f"got {what}; fix the file, or pass codes as {{value: name}}")
    codes = found[0] if isinstance(found[0], dict) else dict(enumerate(found[0]))
    try: codes = {int(k): v for k,v in codes.items()}
    except ValueError:
        raise AnnotationError(f"{fname}: expected whole numbers as values, got {brief(list(codes))}; "
                              "fix the file") from None
    if len(codes) < len(found[0]): raise AnnotationError(f"{fname}: a value appears twice (01 is 1); fix the file")
    far = [v for v in codes if abs(v) >= 2**31]
    if far: raise AnnotationError(f"{fname}: expected values below 2**31, got {brief(far[0])}; fix the file")
    try: return _values_of(codes)
    except ValueError as e: raise AnnotationError(f"{fname}: {e}") from None

def _values_of(codes):   # -> {value: name}, in the order of the class indices
    if isinstance(codes, (str, Path)): return read_codes(codes)
    codes = dict(codes) if isinstance(codes, Mapping) else dict(enumerate(codes))
    for v,o in codes.items():
        if not isinstance(o, str) or not o.strip() or not isinstance(v, Integral):
            raise ValueError(f"codes: expected names, or {{whole number: name}}, got {brief(v)}: {brief(o)}")
    names = list(codes.values())
    twice = [o for o in names if names.count(o) > 1]
    if twice:
        raise ValueError(f"codes: {brief(twice[0])} appears twice; every class needs a name of its own, and where "
                         "several values are one class, colors={value: name} says so")
    if not names: raise ValueError("codes is empty; expected the names of the classes")
    if len(names) > VOID and names[VOID] != 'void':
        raise ValueError(f"codes: index {VOID} is void whatever the number of classes, so of {len(names)} codes that "
                         f"one must be 'void', not {brief(names[VOID])}; insert it there")
    return codes

# --- which mask is whose

def _pairs(images, masks, mask_of):
    "[(pictures, masks, by what they were paired)], one of each where all is well"
    pictures = _files(images, 'images')
    if not isinstance(masks, (str, Path, type(None))):
        masks = list(masks)
        if isinstance(images, (str, Path)) or mask_of is not None or len(pictures) != len(masks):
            raise ValueError(f"masks: a list of {len(masks)} paths goes beside a list of as many pictures, without "
                             f"mask_of; there are {len(pictures)} pictures")
        return [([p], _mask_files(m, Path()), 'by masks=') for p,m in zip(pictures, masks)]
    if mask_of is not None:
        return [([p], _mask_files(_called(mask_of, p), Path(masks or '')), 'by mask_of=') for p in pictures]
    if masks is None: raise ValueError("masks=None says not where the masks are; name the folder, or give mask_of=")
    stems = {}
    for p in pictures: stems.setdefault(p.stem, ([], [], f'of its stem in {masks}'))[0].append(p)
    for m in _files(masks, 'masks'):
        if m.stem in stems: stems[m.stem][1].append(m)
        # a list may be a choice of the pictures; a folder should hold them all
        elif isinstance(images, (str, Path)): stems[m.stem] = [],[m],f'of its stem in {images}'
    return list(stems.values())

def _check_complete(pairs):
    "Raise where a writer of these images or masks was interrupted"
    files = [f for pictures,masks,_ in pairs for o in (*pictures, *masks) for f in (o if isinstance(o, list) else [o])]
    check_complete(*{f.parent for f in files})

def _called(mask_of, image):
    try: return either(choice(None), PATH, PATHS)("what mask_of returned", mask_of(image))
    except Exception as e: raise AnnotationError(f"{image}: mask_of failed: {type(e).__name__}: {e}") from e

def _mask_files(m, folder):
    "[one path]; [a list of paths] for a list, or a folder, of files with one object each; [] for `None`"
    if m is None: return []
    if not isinstance(m, (str, os.PathLike)): return [[folder/o for o in m]]
    return [_Listed(folder/m)] if (folder/m).is_dir() else [folder/m]

class _Listed(list):
    "The image files of a folder"
    def __init__(self, folder):
        super().__init__(_image_files(folder))
        self.folder = folder

def _insides(images, masks, mask_of, allow_outside):
    "The checks of images and of masks, as of `inside_of`, for those that a folder lists; other paths are the user's"
    is_folder = lambda o: isinstance(o, (str, os.PathLike))
    return (inside_of(images, allow_outside or not is_folder(images)),
            inside_of(masks, allow_outside or mask_of is not None or not is_folder(masks)))

def _image_files(folder):
    return sorted(p for p in Path(folder).iterdir()   # ._x.png is what macOS leaves beside x.png
                  if p.suffix.lower() in Image.registered_extensions() and p.name[0] != '.')

def _files(o, arg):
    "The image files of a folder, sorted, or the paths of a list"
    if not isinstance(o, (str, Path)): files = [Path(p) for p in o]
    elif not Path(o).is_dir():
        raise AnnotationError(f"{o}: no such folder; name it with {arg}=, or give a list of paths")
    else: files = _image_files(o)
    if files: return files
    raise AnnotationError(f"{arg}={o} holds no image file itself; name the folders in it one by one, or give paths")

def _read(pictures, masks, paired, table, split, seen, inside):
    picture,file = _pair(pictures, masks, paired)
    if isinstance(file, list):
        raise AnnotationError(f"{picture} has a list or folder of masks {paired}; a class mask is one file, and "
                              "`read_instance_masks` reads a file for each object")
    file,size = MaskFile(inside[1](file), table),size_of(inside[0](picture))
    m = _fitting(decode_class_mask, file, file.path, picture, size)
    seen.update(np.flatnonzero(np.bincount(m.ravel())).tolist())
    return Annotation(picture, size, mask=file.path if table.is_identity else file, split=split)

def _read_instances(pictures, masks, paired, label, void, split, inside, allow_outside):
    picture,file = _pair(pictures, masks, paired)
    size = size_of(inside[0](picture))
    if isinstance(file, list):
        if isinstance(file, _Listed): file = [*map(inside_of(file.folder, allow_outside), file)]
        twice = [o for o in file if file.count(o) > 1]
        if twice: raise AnnotationError(f"{picture}: mask {twice[0]} appears twice {paired}; list each object once")
        objects = [_one_object(_ids(o, picture, size, void), o, picture) for o in file]
        rles,bboxes = [encode_rle(m) for m in objects],np.reshape([mask_bbox(m) for m in objects], (-1, 4))
    else: _,rles,bboxes = encode_instances(_ids(inside[1](file), picture, size, void))
    return Annotation(picture, size, [label]*len(rles), bboxes, masks=rles, split=split)

def _ids(file, picture, size, void):   # -> (h, w), 0 where there is no object
    decode = lambda o: _values(o, todo="expected the ids of objects; `read_masks` reads classes by colours")
    ids = _fitting(decode, file, file, picture, size)
    if ids.min() < 0: raise AnnotationError(f"mask {file}: expected ids of objects, 0 or more, got {ids.min()}")
    return np.where(np.isin(ids, void), 0, ids) if void else ids

def _one_object(ids, file, picture):   # -> (h, w) bool
    values = np.unique(ids[ids > 0])
    if len(values) == 1: return ids > 0
    if not len(values): raise AnnotationError(f"mask {file} of {picture}: expected an object, got no pixel other than "
                                              "0; delete the file, or drop it from the list")
    raise AnnotationError(f"mask {file} of {picture}: expected one object, which is all of one value, got the values "
                          f"{values[:10].tolist()}; return the path itself, not a list or folder, for a file of ids, "
                          "or name values that are no object in void")

def _pair(pictures, masks, paired):   # -> picture, mask
    if not pictures:
        raise AnnotationError(f"mask {masks[0]} has no picture {paired}; "
                              "bring the picture back, or give a list of pictures")
    if len(pictures) > 1 or len(masks) > 1:
        raise AnnotationError(f"{' and '.join(map(str, pictures))}: not clear which mask is whose; {paired} there is "
                              f"{' and '.join(m.name for m in masks) or 'none'}; pair them by mask_of= or two lists")
    if masks: return pictures[0],masks[0]
    raise AnnotationError(f"{pictures[0]} has no mask {paired}; name it with mask_of=, or leave the picture out")

def _fitting(decode, mask, file, picture, size):   # -> (h, w), as `decode` gives it
    "The mask of `picture`, which must have its size"
    try: m = decode(mask)
    except OSError as e: raise AnnotationError(f"{e} (mask of {picture})") from e
    if m.shape == size[::-1]: return m
    raise AnnotationError(f"mask {file} is {wh(m.shape[::-1])}, but its picture {picture} is {wh(size)}"
                          f"{unturned(picture, m.shape[::-1])}; bring both to one size, or pair them anew")

# --- what a pixel stands for

@dataclass(frozen=True, eq=False)
class MaskTable:
    "What the values or colours of mask files mean; one for all files of a data set"
    values:np.ndarray     # (k,) int32, ascending; a colour is 65536*r + 256*g + b
    indices:np.ndarray    # (k,) class index of each, 255 = void; uint8, or int32 beyond 255
    colours:bool          # whether the values are colours

    @property
    def is_identity(self): return not self.colours and np.array_equal(self.values, self.indices)

    def lookup(self, v):  # -> class indices, and whether the table has them; both shaped as `v`
        at = np.searchsorted(self.values, v).clip(max=len(self.values) - 1)
        return self.indices[at],self.values[at] == v

    def decode(self, path):   # -> (h, w)
        v = _values(path, self.colours)
        if v.dtype.itemsize > 2: m,known = self.lookup(v)
        # fewer values than pixels: look up each once
        else: m,known = (o[v] for o in self.lookup(np.arange(np.iinfo(v.dtype).max + 1)))
        if known.all(): return m
        what = 'colours' if self.colours else 'values'
        bad,n = np.unique(v[~known], return_counts=True)
        top = np.argsort(-n, kind='stable')[:5]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ''
        raise AnnotationError(f"mask {path}: {what} without a class: "
                              f"{', '.join(f'{self._text(bad[i])} ({n[i]} px)' for i in top)}{more}; expected "
                              f"{self._known()}; fix the mask, or name them in codes, colors or void")

    def _text(self, v): return str((int(v) >> 16, int(v) >> 8 & 255, int(v) & 255)) if self.colours else str(v)

    def _known(self):
        "The values as people write them: 0-10, 255"
        if self.colours: runs = [[v] for v in self.values]
        else: runs = np.split(self.values, np.flatnonzero(np.diff(self.values) != 1) + 1)
        text = [self._text(o[0]) + (f'-{self._text(o[-1])}' if len(o) > 1 else '') for o in runs]
        return ', '.join(text[:12]) + (', ...' if len(text) > 12 else '')

@dataclass(frozen=True, eq=False)
class MaskFile:
    "A mask's file that holds other values than class indices; `decode_class_mask` turns them into indices by `table`"
    path:Path
    table:MaskTable
    def __post_init__(self):
        PATH('path', self.path)
        instance(MaskTable, what="what `read_masks` makes of codes and colors")('table', self.table)
    def __repr__(self): return f'MaskFile({self.path})'

@checked(size=WIDTH_HEIGHT)
def decode_class_mask(
    mask,                     # `Annotation.mask`: a path, a `MaskFile`, or (h, w) class indices
    size:tuple[int,int]=None, # (w, h) in pixels that the mask must have, the picture's; None = any
) -> np.ndarray:              # (h, w) class indices, 255 = void; uint8, or int32 where the source has more than 8 bits
    """A class mask as an array, upright (EXIF applied). Raises `OSError` where the file is missing, broken, or holds
    several images, `AnnotationError` where it has a lossy format or something else than indices"""
    file = mask.path if isinstance(mask, MaskFile) else mask
    if isinstance(mask, MaskFile): m = mask.table.decode(file)
    elif PATH.ok(mask): m = _values(file)
    else: file,m = 'array',np.asarray(mask)
    if m.ndim != 2 or m.dtype.kind not in 'bui':
        raise AnnotationError(f"mask: expected a path or (h, w) class indices, got {brief(mask)}")
    if size is not None and m.shape != tuple(size)[::-1]:
        raise AnnotationError(f"mask {file}: expected the picture's size, {wh(size)}, got {wh(m.shape[::-1])}")
    return m if m.dtype == np.uint8 else m.astype(np.uint8 if m.dtype == bool else np.int32)

def _stretch(im):
    """(largest value of the file, what Pillow makes of it) for the opened grey image `im` whose values Pillow
    multiplies so that they fill the range: PNG and TIFF of 2 and 4 bits, PGM of another maximum; None for others. It is
    gone once the pixels are loaded"""
    if not im.tile: return None
    kind,args = im.tile[0][0],im.tile[0][3]
    if im.format == 'PPM': return (args[1], 255 if im.mode == 'L' else 65535) if kind.startswith('ppm') else None
    raw = args if isinstance(args, str) else args[0] if isinstance(args, tuple) and args else None
    bits = re.match('L;([24])', raw) if isinstance(raw, str) else None
    return (2**int(bits[1]) - 1, 255) if bits else None

_COLOURS = '1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA'   # the modes that become RGBA without loss

def _values(path, colours=False, todo="say in colors={(r, g, b): name} which colour is what"):
    "The values of a mask's file, or its colours as numbers; (h, w) uint8, uint16 or int32"
    try:
        with open_image(path) as im:
            lossy = lossy_format(im)
            stretch = _stretch(im)
            im = upright(im)
            if colours and im.mode in _COLOURS: im = im.convert('RGBA')
            v,mode = np.array(im),im.mode   # `asarray` gives one that cannot be written to, which torch does not like
    except FileNotFoundError: raise
    except BROKEN as e: raise unreadable(f"mask {path}", e, todo='') from e
    if lossy is not None:
        raise AnnotationError(f"mask {path} is a {lossy}, which blurs classes and the ids of objects into others; save "
                              "masks as png from the start, or restore their values and save that as png")
    if colours:
        if mode == 'RGBA': return (v.view('>u4')[...,0] >> 8).astype(np.int32)   # four bytes as one number, without A
        raise AnnotationError(f"mask {path} is of mode {mode}, in which there are no colours of 8 bits; "
                              "write values, not colours, into colors, or convert the file to RGB")
    if mode == '1': return v.astype(np.uint8)
    if mode in ('L', 'I') and stretch is not None:
        most,white = stretch
        return ((v.astype(np.int64)*(2*most) + white)//(2*white)).astype(v.dtype)   # Pillow rounded; this rounds back
    if mode in ('L', 'P', 'I') or mode.startswith('I;16'): return v
    raise AnnotationError(f"mask {path} holds colours (mode {mode}), not one whole number a pixel; {todo}")

def _mask_table(codes, colors, void):   # codes {value: name} -> MaskTable
    names = list(codes.values())
    if colors is None: items = list(zip(codes, names))
    elif list(codes) != list(range(len(codes))):
        raise ValueError("codes and colors both say what stands in the files; with colors, codes is a list of names")
    elif isinstance(colors, Mapping): items = list(colors.items())
    elif len(colors) == len(names):   items = list(zip(colors, names))
    else: raise ValueError(f"colors: expected one for each of the {len(names)} codes, got {len(colors)}")
    colours,table = bool(items) and not isinstance(items[0][0], Integral),{}
    def put(key, i):
        if table.setdefault(_number(key, colours), i) == i: return
        both = ' and '.join('void' if j == VOID else repr(names[j]) for j in (table[_number(key, colours)], i))
        raise ValueError(f"{key!r} stands for {both}; it can be one of them only, so leave it out of the other")
    for k,o in items: put(k, _index(o, names))
    if void is None: void = [] if colours or 255 in table else 255
    for k in [void] if isinstance(void, Integral) or colours and _is_colour(void) else void: put(k, VOID)
    values,indices = np.array(sorted(table.items()), np.int32).T
    return MaskTable(values, indices.astype(np.uint8 if indices.max() < 256 else np.int32), colours)

def _is_colour(o):
    return (isinstance(o, (tuple, list, np.ndarray)) and len(o) == 3 and
            all(isinstance(c, Integral) and 0 <= c < 256 for c in o))

def _number(k, colours):
    if colours and _is_colour(k): r,g,b = map(int, k); return 65536*r + 256*g + b
    if not colours and isinstance(k, Integral) and abs(k) < 2**31: return int(k)
    raise ValueError(f"expected {'colours (r, g, b) of 0 to 255' if colours else 'whole numbers'}, got {brief(k)}; "
                     "colors holds colours only or values only, and void the same")

def _index(o, names):
    "The class index of a name or an index"
    if isinstance(o, str) and o in names: return names.index(o)
    if isinstance(o, Integral) and (0 <= o < len(names) or o == VOID): return int(o)
    raise ValueError(f"colors: {brief(o)} is none of the {len(names)} codes, by name or index{nearest(o, names)}")

# --- write

@checked(codes=_CODES, values=_COLORS, colors=_COLORS, void=_VOID)
def write_masks(
    annotations,     # list[Annotation] with `mask`
    dest,            # folder, made if not there; no image and no mask of `annotations` may be written over
    codes,           # as of `read_masks`: names; or {value: name}, then those values are written; or a yaml file
    values=None,     # the value of each class, 0 to 65535, in the order of `codes`, or {value: name or index};
                     # None (default): the class indices, or the values of `codes`
    colors=None,     # the colour (r, g, b) of each class, in the same forms, in place of values
    void=None,       # value or colour of void pixels; None (default): 255 unless it is the value of a class, and no
                     # colour. Void pixels without a value or colour are an error
) -> list[Path]:     # the files, in the order of `annotations`
    """Write what `read_masks(images, dest, codes)` reads: a png for every image, named by its stem, void as 255. The
    palette is PASCAL VOC's; where a value is above 255 the files are grey of 16 bits.

    With `values` the files are grey, without a palette, and with `colors` RGB; `read_masks(images, dest, codes,
    colors=values or colors, void=void)` reads them: `values=[0, 255]` are masks of two classes as many tools expect
    them.

    All files are replaced together, or none is; the masks of other images in `dest` stay, so that a set can be written
    in parts"""
    dest,codes = Path(dest),_values_of(codes)
    pixels,rgb = _written_as(codes, values, colors, void)
    files = _targets(annotations, dest)
    for a in annotations:
        if a.mask is None: raise AnnotationError(f"{a.path} has no class mask (`mask` is None); drop it")
    def write(a, file, writing):
        m = decode_class_mask(a.mask, a.size)
        bad = np.unique(m[(m < 0) | (m >= len(pixels)) | (pixels[m.clip(0, len(pixels) - 1)] < 0)])
        if VOID in bad and len(codes) <= VOID:
            raise AnnotationError(f"{a.path}, mask: {(m == VOID).sum()} pixels are void (255), for which there is no "
                                  "value or colour; give void=")
        if len(bad):
            raise AnnotationError(f"{a.path}, mask: expected class indices below {len(codes)}, or 255 (void), got "
                                  f"{bad[:10].tolist()}; are these the codes of this data set?")
        px = pixels[m]
        if rgb: im = Image.fromarray(np.stack([px >> 16, px >> 8 & 255, px & 255], 2).astype(np.uint8))
        else: im = Image.fromarray(px.astype(np.uint8 if pixels.max() < 256 else np.uint16))
        if im.mode == 'L' and values is None: im.putpalette(_voc_palette().tobytes())
        with writing(file) as part: im.save(part, 'PNG')
    _write_all(write, annotations, files, dest)
    return files

@checked()
def write_instance_masks(
    annotations,     # list[Annotation] with boxes and a mask for each; one name throughout
    dest,            # folder, made if not there; no picture of `annotations` may be written over, but pngs of the same
                     # stems are replaced (an RLE does not know the file that it came from)
) -> list[Path]:     # the files, in the order of `annotations`
    """Write what `read_instance_masks(images, dest, label)` reads: a grey png for every picture, named by its stem,
    whose objects are 1, 2, ... in their order; of 16 bits where they are more than 255. A pixel has one object: masks
    that overlap are errors, and so are empty ones, objects to ignore, and names of several classes.

    Read back, boxes are tight around the masks. Scores, points, `mask`, `group` and `split` have no place. All files
    are replaced together, or none is; the masks of other images in `dest` stay"""
    dest = Path(dest)
    files,names = _targets(annotations, dest),{}
    for a in annotations:
        for o in a.labels: names.setdefault(o, a.path)
    if len(names) > 1:
        (x,p),(y,q) = list(names.items())[:2]
        raise AnnotationError(f"id masks say nothing of classes, and there are {x!r} ({p}) and {y!r} ({q}); "
                              "write a folder for each (`select_objects`), or use `write_coco`")
    def write(a, file, writing):
        im = Image.fromarray(_id_mask(a))
        with writing(file) as part: im.save(part, 'PNG')
    _write_all(write, annotations, files, dest)
    return files

def _write_all(write, annotations, files, dest):
    "`write` each of `files`, in threads: all or none"
    with writing_set([dest]) as writing, ThreadPoolExecutor() as ex:
        list(ex.map(lambda a, file: write(a, file, writing), annotations, files))

def _id_mask(a):   # -> (h, w) ids, from 1; 0 = none
    def fail(what, todo): raise AnnotationError(f"{a.path}{what}; {todo}")
    if a.bboxes is None or a.masks is None and a.labels:
        fail(f" has no {'boxes' if a.bboxes is None else 'masks'}", "leave it out")
    if a.ignore is not None and a.ignore.any():
        fail(": id masks have no objects to ignore, and others would train on them",
             "leave them out (`select_objects`)")
    ids = np.zeros(a.size[::-1], np.uint8 if len(a.labels) < 256 else np.uint16)
    for i,m in enumerate(a.masks or [], 1):
        try: m = decode_mask(m, a.size)
        except ValueError as e: raise AnnotationError(f"{a.path}, masks, row {i - 1}: {e}") from None
        there = ids[m]
        if not m.any(): fail(f", masks, row {i - 1}: no pixels, so that the object would be lost", "leave it out")
        if there.any():
            j = there.max()
            fail(f", masks, rows {j - 1} and {i - 1}: {(there == j).sum()} pixels are of both, and an id mask holds "
                 "one object a pixel", "give them to the one or the other, or use `write_coco`")
        ids[m] = i
    return ids

def _written_as(codes, values, colors, void):
    """(256 or more,) what is written for each class index, a colour as one number, -1 where there is nothing; whether
    they are colours"""
    if values is not None and colors is not None:
        raise ValueError("values and colors both say what is written; give one of them")
    given,rgb = (values, False) if colors is None else (colors, True)
    if given is None:
        if void is not None: raise ValueError("void= goes with values= or colors=; without them void is written as 255")
        return _written(codes),False
    table = _mask_table(codes, given, void)
    if table.colours != rgb: raise ValueError(f"{'colors' if rgb else 'values'}: expected "
                                              f"{'colours (r, g, b)' if rgb else 'whole numbers'}, got {brief(given)}")
    if not rgb and not (0 <= table.values.min() and table.values.max() < 65536):
        raise ValueError(f"values: expected whole numbers from 0 to 65535, got {table.values.tolist()}")
    res = np.full(max(len(codes), VOID + 1), -1)
    res[table.indices[::-1]] = table.values[::-1]   # the smallest where a class has several
    return res,rgb

def _written(codes):   # {value: name} -> (256 or more,) the value of each class index, -1 where there is no class
    values = np.full(max(len(codes), VOID + 1), -1)
    values[:len(codes)] = list(codes)
    values[VOID] = VOID
    wrong = [v for i,v in enumerate(codes) if i != VOID and (v == VOID or not 0 <= v < 65536)]
    if wrong: raise ValueError(f"codes: {wrong[0]} has no place in a mask, whose classes are 0 to 65535 without 255, "
                               "which is void; write with the list of names")
    return values

def _targets(annotations, dest):
    "The file of each annotation's mask, once it is sure that all can be written"
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file to name its mask by; set `path`")
    files = [dest/f'{a.path.stem}.png' for a in annotations]
    masks = [a.mask.path if isinstance(a.mask, MaskFile) else a.mask for a in annotations]
    check_outputs(files, [a.path for a in annotations], keep=[o for o in masks if isinstance(o, Path)])
    return files

def _voc_palette():   # -> (256, 3) uint8
    "PASCAL VOC's colours: the bits of an index go to red, green and blue in turn, each from its highest bit down"
    i,bit = np.arange(256)[:,None],np.arange(8)
    return np.stack([((i >> 3*bit + c & 1) << 7 - bit).sum(1) for c in range(3)], 1).astype(np.uint8)
