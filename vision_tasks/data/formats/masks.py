"Class masks in files: one per image, whose pixels are class indices, other values, or colors"
from __future__ import annotations
from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import numpy as np
from PIL import Image
from ...arguments import FUNCTION, PATH, PATHS, Kind, brief, checked, choice, either, several
from ..annotation import Annotation, unturned
from ..image import wh
from ..class_masks import MaskFile, decode_class_mask
from ..errors import AnnotationError
from .mask_values import CODES, COLORS, VOID_VALUES, mask_table, values_of_codes
from ..reading import inside_of, read_all, size_of
from ..writing import check_complete, check_outputs, writing_set
from ...ops.masks import VOID

__all__ = ['read_masks', 'write_masks']

_FOLDER  = Kind("a folder", PATH.ok)
IMAGE_FILES  = either(_FOLDER, PATHS)
MASK_FILES   = either(_FOLDER, several(either(choice(None), PATH, PATHS), "a list of paths, beside a list of images"),
                      Kind("None, beside mask_of", lambda o: o is None))

@checked(images=IMAGE_FILES, masks=MASK_FILES, codes=CODES, mask_of=FUNCTION, colors=COLORS, void=VOID_VALUES)
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
    named = values_of_codes(codes)
    table = mask_table(named, colors, void)
    pairs,seen = candidate_pairs(images, masks, mask_of),set()
    check_complete_pairs(pairs)
    inside = inside_checks(images, masks, mask_of, allow_outside)
    anns = read_all(lambda o: _read(*o, table, split, seen, inside), pairs, on_error)
    if void is None and colors is None and VOID in seen and seen <= {0, VOID}:
        first = brief(next(iter(named.values())))
        raise AnnotationError(f"all {len(anns)} masks in {masks!s:.80} hold nothing but {first} "
                              "and the value 255, which is void unless said otherwise; write colors=[0, 255] where "
                              "0 and 255 are the two classes, void=255 where 255 is void indeed")
    return anns

# --- which mask is whose

def candidate_pairs(images, masks, mask_of):
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

def check_complete_pairs(pairs):
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
    return [ListedFiles(folder/m)] if (folder/m).is_dir() else [folder/m]

class ListedFiles(list):
    "The image files of a folder"
    def __init__(self, folder):
        super().__init__(_image_files(folder))
        self.folder = folder

def inside_checks(images, masks, mask_of, allow_outside):
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
    picture,file = pair_files(pictures, masks, paired)
    if isinstance(file, list):
        raise AnnotationError(f"{picture} has a list or folder of masks {paired}; a class mask is one file, and "
                              "`read_instance_masks` reads a file for each object")
    file,size = MaskFile(inside[1](file), table),size_of(inside[0](picture))
    m = mask_of_size(decode_class_mask, file, file.path, picture, size)
    seen.update(np.flatnonzero(np.bincount(m.ravel())).tolist())
    return Annotation(picture, size, mask=file.path if table.is_identity else file, split=split)

def pair_files(pictures, masks, paired):   # -> picture, mask
    if not pictures:
        raise AnnotationError(f"mask {masks[0]} has no picture {paired}; "
                              "bring the picture back, or give a list of pictures")
    if len(pictures) > 1 or len(masks) > 1:
        raise AnnotationError(f"{' and '.join(map(str, pictures))}: not clear which mask is whose; {paired} there is "
                              f"{' and '.join(m.name for m in masks) or 'none'}; pair them by mask_of= or two lists")
    if masks: return pictures[0],masks[0]
    raise AnnotationError(f"{pictures[0]} has no mask {paired}; name it with mask_of=, or leave the picture out")

def mask_of_size(decode, mask, file, picture, size):   # -> (h, w), as `decode` gives it
    "The mask of `picture`, which must have its size"
    try: m = decode(mask)
    except OSError as e: raise AnnotationError(f"{e} (mask of {picture})") from e
    if m.shape == size[::-1]: return m
    raise AnnotationError(f"mask {file} is {wh(m.shape[::-1])}, but its picture {picture} is {wh(size)}"
                          f"{unturned(picture, m.shape[::-1])}; bring both to one size, or pair them anew")

# --- write

@checked(codes=CODES, values=COLORS, colors=COLORS, void=VOID_VALUES)
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
    dest,codes = Path(dest),values_of_codes(codes)
    pixels,rgb = _written_as(codes, values, colors, void)
    files = mask_targets_of(annotations, dest)
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
    write_mask_files(write, annotations, files, dest)
    return files

def write_mask_files(write, annotations, files, dest):
    "`write` each of `files`, in threads: all or none"
    with writing_set([dest]) as writing, ThreadPoolExecutor() as ex:
        list(ex.map(lambda a, file: write(a, file, writing), annotations, files))

def _written_as(codes, values, colors, void):
    """(256 or more,) what is written for each class index, a colour as one number, -1 where there is nothing; whether
    they are colours"""
    if values is not None and colors is not None:
        raise ValueError("values and colors both say what is written; give one of them")
    given,rgb = (values, False) if colors is None else (colors, True)
    if given is None:
        if void is not None: raise ValueError("void= goes with values= or colors=; without them void is written as 255")
        return _written(codes),False
    table = mask_table(codes, given, void)
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

def mask_targets_of(annotations, dest):
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
