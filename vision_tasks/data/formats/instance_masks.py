"Instance masks in files: one per image, whose pixels are object ids, or one per object"
from __future__ import annotations
from pathlib import Path
import numpy as np
from PIL import Image
from ...arguments import FUNCTION, TEXT, checked, either, is_whole, several, whole
from ..annotation import Annotation
from ..class_masks import mask_values
from ..errors import AnnotationError
from .masks import (IMAGE_FILES, MASK_FILES, ListedFiles, candidate_pairs, check_complete_pairs, inside_checks,
                    mask_of_size, mask_targets_of, pair_files, write_mask_files)
from ..reading import inside_of, read_all, size_of
from ...ops.masks import decode_mask, encode_instances, encode_rle, mask_bbox

__all__ = ['read_instance_masks', 'write_instance_masks']
_NO_OBJECT = either(whole(None), several(whole(None), "whole numbers, () for none"))

@checked(images=IMAGE_FILES, masks=MASK_FILES, label=TEXT, mask_of=FUNCTION, void=_NO_OBJECT)
def read_instance_masks(
    images,               # folder of the images, or a list of their paths
    masks,                # folder of the masks; or a list, beside a list of images, of what `mask_of` may return
    label:str,            # class name of all objects, since the files have no classes
    mask_of=None,         # function: path of an image -> path of its id mask; or a list of paths or a folder with one
                          # file per object, which may be empty. Absolute, or relative to `masks`; None (default): the
                          # file in `masks` with the stem of the image
    void=(),              # value(s) without an object, besides 0: 255 for borders in PASCAL VOC's SegmentationObject
    split:str=None,       # split of all these images: 'train', 'valid' or 'test'; None (default): no split
    on_error:str='raise', # 'raise' `AnnotationError` at the first image that cannot be read, or 'drop' such images and
                          # count them
    allow_outside:bool=False, # also follow links that lead out of the folders; paths that you pass may be anywhere
) -> list[Annotation]:    # in the order of the list or of the file names
    """Read images with the objects of their id masks: each value in the file is the id of one object, which may have
    several parts; ids may skip numbers, and 0 is no object. Objects are in the order of their ids, with tight boxes and
    RLE masks. An image whose mask is all 0 has no objects. The values of a palette file are its indices.

    If each object has its own file, with one value other than 0, objects are in the order of the list or of the file
    names, and may overlap: `read_instance_masks(Path('stage1_train').glob('*/images/*.png'), None, 'nucleus',
    mask_of=lambda p: p.parents[1]/'masks')` reads the 2018 Data Science Bowl.

    Raises `AnnotationError` for masks of another size, in a lossy format (JPEG), or with several values where one
    object is expected"""
    void = [void] if is_whole(void) else list(void)
    pairs,inside = candidate_pairs(images, masks, mask_of),inside_checks(images, masks, mask_of, allow_outside)
    check_complete_pairs(pairs)
    read = lambda o: _read_instances(*o, label, void, split, inside, allow_outside)
    return read_all(read, pairs, on_error)

def _read_instances(images, masks, paired, label, void, split, inside, allow_outside):
    image,file = pair_files(images, masks, paired)
    size = size_of(inside[0](image))
    if isinstance(file, list):
        if isinstance(file, ListedFiles): file = [*map(inside_of(file.folder, allow_outside), file)]
        twice = [o for o in file if file.count(o) > 1]
        if twice: raise AnnotationError(f"{image}: mask {twice[0]} appears twice {paired}; list each object once")
        objects = [_one_object(_ids(o, image, size, void), o, image) for o in file]
        rles,bboxes = [encode_rle(m) for m in objects],np.reshape([mask_bbox(m) for m in objects], (-1, 4))
    else: _,rles,bboxes = encode_instances(_ids(inside[1](file), image, size, void))
    return Annotation(image, size, [label]*len(rles), bboxes, masks=rles, split=split)

def _ids(file, image, size, void):   # -> (h, w), 0 for no object
    decode = lambda o: mask_values(o, todo="expected the ids of objects; `read_masks` reads classes by colours")
    ids = mask_of_size(decode, file, file, image, size)
    if ids.min() < 0: raise AnnotationError(f"mask {file}: expected ids of objects, 0 or more, got {ids.min()}")
    return np.where(np.isin(ids, void), 0, ids) if void else ids

def _one_object(ids, file, image):   # -> (h, w) bool
    values = np.unique(ids[ids > 0])
    if len(values) == 1: return ids > 0
    if not len(values): raise AnnotationError(f"mask {file} of {image}: expected an object, got only pixels with value "
                                              "0; delete the file, or drop it from the list")
    raise AnnotationError(f"mask {file} of {image}: expected one object, with a single value, got the values "
                          f"{values[:10].tolist()}; for a file of ids return the path itself, not a list or folder, "
                          "or pass values without an object as void=")

@checked()
def write_instance_masks(
    annotations,     # list[Annotation] with boxes and a mask for each box, all of one class
    dest,            # folder, created if missing; images of `annotations` are never overwritten, but pngs with their
                     # stems are replaced (an RLE does not store the file that it was read from)
) -> list[Path]:     # the files, in the order of `annotations`
    """Write files for `read_instance_masks(images, dest, label)`: a grey png for every image, with its stem, whose
    objects are 1, 2, ... in their order; with 16 bits for more than 255 objects. Raises `AnnotationError` for masks
    that overlap, since a pixel has one object, for empty masks, ignored objects and several classes.

    When read back, boxes are tight around the masks. Scores, points, `mask`, `group` and `split` are not written. All
    files are replaced together, or none is; masks of other images in `dest` are kept"""
    dest = Path(dest)
    files,names = mask_targets_of(annotations, dest),{}
    for a in annotations:
        for o in a.labels: names.setdefault(o, a.path)
    if len(names) > 1:
        (x,p),(y,q) = list(names.items())[:2]
        raise AnnotationError(f"id masks do not store classes, but there are {x!r} ({p}) and {y!r} ({q}); "
                              "write a folder for each (`select_objects`), or use `write_coco`")
    def write(a, file, writing):
        im = Image.fromarray(_id_mask(a))
        with writing(file) as part: im.save(part, 'PNG')
    write_mask_files(write, annotations, files, dest)
    return files

def _id_mask(a):   # -> (h, w) ids from 1; 0: no object
    def fail(what, todo): raise AnnotationError(f"{a.path}{what}; {todo}")
    if a.bboxes is None or a.masks is None and a.labels:
        fail(f" has no {'boxes' if a.bboxes is None else 'masks'}", "drop it")
    if a.ignore is not None and a.ignore.any():
        fail(": id masks have no flag for ignored objects, and other tools would train on them",
             "drop them (`select_objects`)")
    ids = np.zeros(a.size[::-1], np.uint8 if len(a.labels) < 256 else np.uint16)
    for i,m in enumerate(a.masks or [], 1):
        try: m = decode_mask(m, a.size)
        except ValueError as e: raise AnnotationError(f"{a.path}, masks, row {i - 1}: {e}") from None
        there = ids[m]
        if not m.any(): fail(f", masks, row {i - 1}: the mask is empty, so the object would be lost", "drop it")
        if there.any():
            j = there.max()
            fail(f", masks, rows {j - 1} and {i - 1}: {(there == j).sum()} pixels belong to both, but an id mask "
                 "stores one object per pixel", "assign them to one of the two, or use `write_coco`")
        ids[m] = i
    return ids
