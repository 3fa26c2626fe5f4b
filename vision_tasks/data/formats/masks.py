"Class masks in files: one per image, whose pixels are class indices, other values, or colours"
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
    images,               # folder of the images, or a list of their paths
    masks,                # folder of the masks; or a list of their paths, beside a list of images
    codes,                # class names in the order of their indices; or {value in the files: name}, in the order of
                          # the indices; or a yaml file of either, as for `read_codes`
    mask_of=None,         # function: path of an image -> path of its mask, absolute or relative to `masks`, which may
                          # then be None; None (default): the file in `masks` with the stem of the image
    colors=None,          # value or colour of each class in the files: {(r, g, b) or value: name or index}, or a list
                          # in the order of `codes`; None (default): the indices, or the values of `codes`
    void=None,            # value(s), or colour(s) if `colors` has colours, that become 255; (): none; None (default):
                          # the value 255, unless it is a class, and no colour
    split:str=None,       # split of all these images: 'train', 'valid' or 'test'; None (default): no split
    on_error:str='raise', # 'raise' `AnnotationError` at the first image that cannot be read, or 'drop' such images and
                          # count them
    allow_outside:bool=False, # also follow links that lead out of the folders; paths that you pass may be anywhere
) -> list[Annotation]:    # in the order of the list or of the file names
    """Read images with class masks. Every mask is read once, in threads. Raises `AnnotationError` if sizes differ, if a
    value or colour has no class (with the number of its pixels), if `images` is a folder and a mask has no image, and
    for lossy formats (JPEG), which blur classes. `mask` of an annotation is the path if the file holds class indices,
    otherwise a `MaskFile`; `decode_class_mask` reads both when they are needed. The values of a palette file are its
    indices, or its colours if `colors` has colours; transparency is ignored. EXIF orientation is applied to images and
    masks.

    Files with only 0 and 255 are ambiguous, since 255 is void by default: `colors=[0, 255]` makes two classes of them.
    For a trimap with 1, 2 and 3 = border, pass `codes={1: 'pet', 2: 'background'}, void=3`"""
    named = values_of_codes(codes)
    table = mask_table(named, colors, void)
    pairs,seen = candidate_pairs(images, masks, mask_of),set()
    check_complete_pairs(pairs)
    inside = inside_checks(images, masks, mask_of, allow_outside)
    anns = read_all(lambda o: _read(*o, table, split, seen, inside), pairs, on_error)
    if void is None and colors is None and VOID in seen and seen <= {0, VOID}:
        first = brief(next(iter(named.values())))
        raise AnnotationError(f"all {len(anns)} masks in {masks!s:.80} hold only {first} and the value "
                              "255, which is void by default; pass colors=[0, 255] if 0 and 255 are two classes, "
                              "void=255 if 255 is void")
    return anns

# --- pairs of images and masks

def candidate_pairs(images, masks, mask_of):
    "[(images, masks, how they were paired)], one image and one mask each if all is well"
    files = _files(images, 'images')
    if not isinstance(masks, (str, Path, type(None))):
        masks = list(masks)
        if isinstance(images, (str, Path)) or mask_of is not None or len(files) != len(masks):
            raise ValueError(f"masks: a list of {len(masks)} paths needs a list of equally many images, without "
                             f"mask_of; got {len(files)} images")
        return [([p], _mask_files(m, Path()), 'by masks=') for p,m in zip(files, masks)]
    if mask_of is not None:
        return [([p], _mask_files(_called(mask_of, p), Path(masks or '')), 'by mask_of=') for p in files]
    if masks is None: raise ValueError("masks is None; pass the folder of the masks, or mask_of=")
    stems = {}
    for p in files: stems.setdefault(p.stem, ([], [], f'of its stem in {masks}'))[0].append(p)
    for m in _files(masks, 'masks'):
        if m.stem in stems: stems[m.stem][1].append(m)
        # a list may be a subset of the images; a folder should hold all of them
        elif isinstance(images, (str, Path)): stems[m.stem] = [],[m],f'of its stem in {images}'
    return list(stems.values())

def check_complete_pairs(pairs):
    "Raise if a writer of these images or masks was interrupted"
    files = [f for images,masks,_ in pairs for o in (*images, *masks) for f in (o if isinstance(o, list) else [o])]
    check_complete(*{f.parent for f in files})

def _called(mask_of, image):
    try: return either(choice(None), PATH, PATHS)("what mask_of returned", mask_of(image))
    except Exception as e: raise AnnotationError(f"{image}: mask_of failed: {type(e).__name__}: {e}") from e

def _mask_files(m, folder):
    "[path]; for a list or folder of files with one object each, [list of paths]; for None, []"
    if m is None: return []
    if not isinstance(m, (str, os.PathLike)): return [[folder/o for o in m]]
    return [ListedFiles(folder/m)] if (folder/m).is_dir() else [folder/m]

class ListedFiles(list):
    "The image files of a folder"
    def __init__(self, folder):
        super().__init__(_image_files(folder))
        self.folder = folder

def inside_checks(images, masks, mask_of, allow_outside):
    "`inside_of` for images and masks that are listed from a folder; paths passed by the user are trusted"
    is_folder = lambda o: isinstance(o, (str, os.PathLike))
    return (inside_of(images, allow_outside or not is_folder(images)),
            inside_of(masks, allow_outside or mask_of is not None or not is_folder(masks)))

def _image_files(folder):
    return sorted(p for p in Path(folder).iterdir()   # macOS writes ._x.png beside x.png
                  if p.suffix.lower() in Image.registered_extensions() and p.name[0] != '.')

def _files(o, arg):
    "The image files of a folder, sorted, or the paths of a list"
    if not isinstance(o, (str, Path)): files = [Path(p) for p in o]
    elif not Path(o).is_dir():
        raise AnnotationError(f"{o}: no such folder; pass it as {arg}=, or pass a list of paths")
    else: files = _image_files(o)
    if files: return files
    raise AnnotationError(f"{arg}={o} holds no image file itself; pass its folders one by one, or paths")

def _read(images, masks, paired, table, split, seen, inside):
    image,file = pair_files(images, masks, paired)
    if isinstance(file, list):
        raise AnnotationError(f"{image} has a list or folder of masks {paired}; a class mask is one file; "
                              "`read_instance_masks` reads a file for each object")
    file,size = MaskFile(inside[1](file), table),size_of(inside[0](image))
    m = mask_of_size(decode_class_mask, file, file.path, image, size)
    seen.update(np.flatnonzero(np.bincount(m.ravel())).tolist())
    return Annotation(image, size, mask=file.path if table.is_identity else file, split=split)

def pair_files(images, masks, paired):   # -> image, mask
    "The one image and the one mask of a pair; raises `AnnotationError` where one is missing or several fit"
    if not images:
        raise AnnotationError(f"mask {masks[0]} has no image {paired}; "
                              "restore the image, or pass a list of images")
    if len(images) > 1 or len(masks) > 1:
        raise AnnotationError(f"{' and '.join(map(str, images))}: ambiguous masks; {paired} there is "
                              f"{' and '.join(m.name for m in masks) or 'none'}; pair them with mask_of= or two lists")
    if masks: return images[0],masks[0]
    raise AnnotationError(f"{images[0]} has no mask {paired}; pass it with mask_of=, or drop the image")

def mask_of_size(decode, mask, file, image, size):   # -> (h, w), as `decode` returns it
    "The mask of `image`; raises if their sizes differ"
    try: m = decode(mask)
    except OSError as e: raise AnnotationError(f"{e} (mask of {image})") from e
    if m.shape == size[::-1]: return m
    raise AnnotationError(f"mask {file} is {wh(m.shape[::-1])}, but its image {image} is {wh(size)}"
                          f"{unturned(image, m.shape[::-1])}; bring both to one size, or correct the pairs")

# --- write

@checked(codes=CODES, values=COLORS, colors=COLORS, void=VOID_VALUES)
def write_masks(
    annotations,     # list[Annotation] with `mask`
    dest,            # folder, created if missing; images and masks of `annotations` are never overwritten
    codes,           # as in `read_masks`: names; or {value: name}, to write those values; or a yaml file of either
    values=None,     # the value of each class, 0 to 65535, in the order of `codes`, or {value: name or index};
                     # None (default): the class indices, or the values of `codes`
    colors=None,     # the colour (r, g, b) of each class, in the same forms, instead of values; None (default): values
    void=None,       # value or colour of void pixels; None (default): 255 unless it is the value of a class, and no
                     # colour. Void pixels without a value or colour are an error
) -> list[Path]:     # the files, in the order of `annotations`
    """Write files for `read_masks(images, dest, codes)`: a png for every image, with its stem, void as 255 and PASCAL
    VOC's palette; if a value is above 255, the files are grey with 16 bits.

    With `values` the files are grey without a palette, with `colors` RGB; read them with `read_masks(images, dest,
    codes, colors=values or colors, void=void)`. Many tools expect `values=[0, 255]` for two classes.

    All files are replaced together, or none is; masks of other images in `dest` are kept, so that a set can be written
    in parts. Raises `AnnotationError` for annotations without a mask, and for indices without a class"""
    dest,codes = Path(dest),values_of_codes(codes)
    pixels,rgb = _written_as(codes, values, colors, void)
    files = mask_targets_of(annotations, dest)
    for a in annotations:
        if a.mask is None: raise AnnotationError(f"{a.path} has no class mask (`mask` is None); drop it")
    def write(a, file, writing):
        m = decode_class_mask(a.mask, a.size)
        bad = np.unique(m[(m < 0) | (m >= len(pixels)) | (pixels[m.clip(0, len(pixels) - 1)] < 0)])
        if VOID in bad and len(codes) <= VOID:
            raise AnnotationError(f"{a.path}, mask: {(m == VOID).sum()} pixels are void (255), which has no value or "
                                  "colour; pass void=")
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
    "`write` all of `files`, in threads, or none"
    with writing_set([dest]) as writing, ThreadPoolExecutor() as ex:
        list(ex.map(lambda a, file: write(a, file, writing), annotations, files))

def _written_as(codes, values, colors, void):
    """(256 or more,) the value written for each class index, a colour as one number, -1 for no class; whether they are
    colours"""
    if values is not None and colors is not None:
        raise ValueError("got both values and colors; pass one of them")
    given,rgb = (values, False) if colors is None else (colors, True)
    if given is None:
        if void is not None: raise ValueError("void= needs values= or colors=; without them void is written as 255")
        return _written(codes),False
    table = mask_table(codes, given, void)
    if table.colours != rgb: raise ValueError(f"{'colors' if rgb else 'values'}: expected "
                                              f"{'colours (r, g, b)' if rgb else 'whole numbers'}, got {brief(given)}")
    if not rgb and not (0 <= table.values.min() and table.values.max() < 65536):
        raise ValueError(f"values: expected whole numbers from 0 to 65535, got {table.values.tolist()}")
    res = np.full(max(len(codes), VOID + 1), -1)
    res[table.indices[::-1]] = table.values[::-1]   # the smallest of several values of a class
    return res,rgb

def _written(codes):   # {value: name} -> (256 or more,) the value of each class index, -1 for no class
    values = np.full(max(len(codes), VOID + 1), -1)
    values[:len(codes)] = list(codes)
    values[VOID] = VOID
    wrong = [v for i,v in enumerate(codes) if i != VOID and (v == VOID or not 0 <= v < 65536)]
    if wrong: raise ValueError(f"codes: {wrong[0]} cannot be stored in a mask, whose values are 0 to 65535 "
                               "without 255, which is void; pass the list of names")
    return values

def mask_targets_of(annotations, dest):
    "The file of each annotation's mask; raises if one cannot be written"
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file to name its mask after; set `path`")
    files = [dest/f'{a.path.stem}.png' for a in annotations]
    masks = [a.mask.path if isinstance(a.mask, MaskFile) else a.mask for a in annotations]
    check_outputs(files, [a.path for a in annotations], keep=[o for o in masks if isinstance(o, Path)])
    return files

def _voc_palette():   # -> (256, 3) uint8
    "PASCAL VOC's colours: the bits of an index go to red, green and blue in turn, each from its highest bit down"
    i,bit = np.arange(256)[:,None],np.arange(8)
    return np.stack([((i >> 3*bit + c & 1) << 7 - bit).sum(1) for c in range(3)], 1).astype(np.uint8)
