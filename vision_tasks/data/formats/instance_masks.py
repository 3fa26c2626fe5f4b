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
    pairs,inside = candidate_pairs(images, masks, mask_of),inside_checks(images, masks, mask_of, allow_outside)
    check_complete_pairs(pairs)
    read = lambda o: _read_instances(*o, label, void, split, inside, allow_outside)
    return read_all(read, pairs, on_error)

def _read_instances(pictures, masks, paired, label, void, split, inside, allow_outside):
    picture,file = pair_files(pictures, masks, paired)
    size = size_of(inside[0](picture))
    if isinstance(file, list):
        if isinstance(file, ListedFiles): file = [*map(inside_of(file.folder, allow_outside), file)]
        twice = [o for o in file if file.count(o) > 1]
        if twice: raise AnnotationError(f"{picture}: mask {twice[0]} appears twice {paired}; list each object once")
        objects = [_one_object(_ids(o, picture, size, void), o, picture) for o in file]
        rles,bboxes = [encode_rle(m) for m in objects],np.reshape([mask_bbox(m) for m in objects], (-1, 4))
    else: _,rles,bboxes = encode_instances(_ids(inside[1](file), picture, size, void))
    return Annotation(picture, size, [label]*len(rles), bboxes, masks=rles, split=split)

def _ids(file, picture, size, void):   # -> (h, w), 0 where there is no object
    decode = lambda o: mask_values(o, todo="expected the ids of objects; `read_masks` reads classes by colours")
    ids = mask_of_size(decode, file, file, picture, size)
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
    files,names = mask_targets_of(annotations, dest),{}
    for a in annotations:
        for o in a.labels: names.setdefault(o, a.path)
    if len(names) > 1:
        (x,p),(y,q) = list(names.items())[:2]
        raise AnnotationError(f"id masks say nothing of classes, and there are {x!r} ({p}) and {y!r} ({q}); "
                              "write a folder for each (`select_objects`), or use `write_coco`")
    def write(a, file, writing):
        im = Image.fromarray(_id_mask(a))
        with writing(file) as part: im.save(part, 'PNG')
    write_mask_files(write, annotations, files, dest)
    return files

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
