"Targets from an `Annotation`: its labels, points, boxes and masks, checked"
from __future__ import annotations
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
import numpy as np
from torch import Tensor
from ..arguments import TEXT, Kind, brief, checked, instance, nearest, several, whole
from .annotation import Annotation, select_objects
from .class_masks import decode_class_mask
from .errors import AnnotationError
from ..ops.masks import decode_mask
from ..ops.rle import rle_counts

__all__ = ['path_of', 'label_set', 'check_labels', 'REJECTED', 'image_class', 'check_classes', 'point_pairs',
           'mirror_points', 'marked_points', 'NO_OBJECT', 'the_object', 'object_label', 'object_bbox', 'clip_objects',
           'class_mask', 'annotation_of', 'object_bboxes', 'object_masks', 'check_masks']

def path_of(
    o, # Annotation, or another item
):
    "The image file of an `Annotation`; other items are returned unchanged"
    return o.path if isinstance(o, Annotation) else o

def label_set(
    a, # Annotation
):     # list of class names, sorted
    "The unique labels of `a`; a list, since a transform treats a tuple as several items"
    return sorted(set(a.labels))

@checked(vocab=several(instance(str, what="a name"), "a list of names"))
def check_labels(
    annotations, # list[Annotation]
    vocab,       # list of class names
):
    "Raise `AnnotationError` for the first label not in `vocab`, with the closest name and the number of such images"
    known,bad = set(vocab),[]
    for i,a in enumerate(annotations): bad += [(i, a, o) for o in a.labels if o not in known]
    if not bad: return
    i,a,o = bad[0]
    what = "an empty label" if o == '' else f"label {o!r}, which is not in the vocab of {len(vocab)} names"
    raise AnnotationError(f"{a.path}, row {i}: {what} ({len({j for j,*_ in bad})} images have such labels)"
                          f"{nearest(o, vocab)}; fix the label, or add it to the vocab")

# --- the one class of an image

REJECTED = '(rejected)'   # stands for the class of an image whose prediction is not sure enough

def image_class(
    a, # Annotation with one label
):
    "The one label of `a`; repeated labels, as of several boxes of one class, count once. Raises for none or several"
    names = label_set(a)
    if len(names) == 1: return names[0]
    if names: raise AnnotationError(f"{a.path}: labels {brief(names)}, but this task is about one class per image; "
                                    "keep one, or train with `multilabel_dls`")
    raise AnnotationError(f"{a.path}: no label, but this task is about one class per image; drop the image, or give "
                          "such images a class of their own")

@checked()
def check_classes(
    annotations, # list[Annotation]
):
    "Raise `AnnotationError` for the first image that has not exactly one class, and count these"
    bad = [a for a in annotations if len(label_set(a)) != 1]
    if not bad: return
    try: image_class(bad[0])
    except AnnotationError as e:
        none = sum(not a.labels for a in bad)
        raise AnnotationError(f"{e} (of {len(annotations)} images {none} have no label, {len(bad)-none} several)"
                              ) from None

# --- points

@checked(what=TEXT, k=whole(1), vocab=several(instance(str, int, np.integer, what="a name"), "a list of names"))
def point_pairs(
    pairs,  # list of pairs of points, by name or index; or None, which is returned
    vocab,  # names of the points
    what,   # name of the argument, for messages
    k=None, # number of points; None (default): as many as names
):          # list of pairs of indices
    "`pairs` as indices. Raises `ValueError` for what is not a pair, and for unknown points"
    if pairs is None: return None
    vocab = list(vocab)
    k = len(vocab) if k is None else k
    def index(o):
        if isinstance(o, (int, np.integer)) and 0 <= o < k: return int(o)
        if isinstance(o, str) and o in vocab: return vocab.index(o)
        raise ValueError(f"{what} names {brief(o)}, but the {k} points are {vocab}{nearest(o, vocab)}")
    if isinstance(pairs, (str, type, Mapping)) or not hasattr(pairs, '__iter__'):
        raise ValueError(f"{what}: expected a list of pairs such as ('left_eye', 'right_eye'), got {brief(pairs)}")
    for p in pairs:
        if isinstance(p, str) or not hasattr(p, '__len__') or len(p) != 2:
            raise ValueError(f"{what}: expected a list of pairs such as ('left_eye', 'right_eye'); {brief(p)} is no "
                             "pair")
    return [tuple(map(index, p)) for p in pairs]

@checked(p=Kind("a tensor (..., k, 2) of points", lambda o: isinstance(o, Tensor) and o.ndim > 1 and o.shape[-1] == 2))
def mirror_points(
    p:Tensor,   # (..., k, 2) points of a mirrored image
    flip_pairs, # pairs of indices of points to swap; None raises for more than one point
) -> Tensor:    # (..., k, 2)
    "Swap the points of each pair, since left and right are swapped in a mirrored image. Raises `ValueError`"
    return swap_points(p, point_pairs(flip_pairs, range(p.shape[-2]), 'flip_pairs'))

def swap_points(p, flip_pairs):
    "`mirror_points` without checks, called for each item and batch"
    if flip_pairs is None and p.shape[-2] > 1:
        raise ValueError(f"the image is mirrored, but the pairs of its {p.shape[-2]} points to swap are unknown: "
                         "pass flip_pairs=[('left_eye', 'right_eye'), ...], [] for none, or do not mirror "
                         "(JointTransform(flip=0), aug_transforms(do_flip=False))")
    idxs = list(range(p.shape[-2]))
    for l,r in flip_pairs or []: idxs[l],idxs[r] = r,l
    return p[..., idxs, :]

def marked_points(
    a, # Annotation with points of one instance
):     # (k, 2) float32 pixels
    "The points of `a`; nan for a point that is not marked, or lies outside the image"
    p = a.points.reshape(-1, 2)
    on = ((p >= 0) & (p <= a.size)).all(-1)      # nan is not
    if a.visible is not None: on &= a.visible.reshape(-1) > 0
    return np.where(on[:,None], p, np.float32(np.nan))

# --- images with one object

NO_OBJECT = '#na#'   # the class of images without an object, as in fastai

def the_object(
    a, # Annotation
):     # Annotation
    """`a` with its one object, clipped to the image, or without objects; ignored objects are dropped. Raises
    `AnnotationError` for several objects"""
    if a.ignore is not None: a = select_objects(a, ~a.ignore)
    if a.bboxes is not None: a = clip_objects(a)
    if len(a.labels) > 1: raise AnnotationError(
        f"{a.path}: {len(a.labels)} objects in one image, but this task predicts one; "
        "`largest_object(annotations)` keeps the largest, `crop_instances(annotations)` makes an image of each")
    if NO_OBJECT in a.labels and a.bboxes is not None: raise AnnotationError(
        f"{a.path}: an object with a box has the class {NO_OBJECT!r}, which is for images without an object; "
        "drop the object (`bboxes=np.zeros((0, 4)), labels=[]`), or rename its class")
    if not a.labels and a.bboxes is None: raise AnnotationError(
        f"{a.path}: neither label nor box; for an image without an object pass bboxes=np.zeros((0, 4))")
    return a

def object_label(
    a, # Annotation
):     # class name
    "The label of the one object of `a`, `NO_OBJECT` without objects; boxes are not required. Raises as `the_object`"
    return (the_object(a).labels or [NO_OBJECT])[0]

def object_bbox(
    a, # Annotation
):     # (1, 4) pixels; (0, 4) without objects or without boxes
    "The box of the one object of `a`. Raises as `the_object`"
    b = the_object(a).bboxes
    return np.zeros((0, 4), np.float32) if b is None else b

@checked()
def clip_objects(
    a, # Annotation with boxes
):     # Annotation
    "`a` with its boxes clipped to the image; objects without area in it are dropped. Raises as `object_bboxes`"
    hi = np.array([*a.size]*2, dtype=np.float32)
    b = object_bboxes(a).clip(0, hi)
    keep = (b[:,2:] > b[:,:2]).all(1)
    if keep.all() and (b == a.bboxes).all(): return a
    return select_objects(replace(a, bboxes=b), keep)

def class_mask(
    a, # Annotation with `mask`
    n, # number of classes
):     # (h, w) class indices, 255: void
    "The class mask of `a`. Raises `AnnotationError` without a mask, and for indices of `n` or more, with their counts"
    if a.mask is None: raise AnnotationError(
        f"{a.path}: no class mask (`mask` is None); drop the image, or read its mask (`read_masks`)")
    try: m = decode_class_mask(a.mask, a.size)
    except OSError as e: raise AnnotationError(f"{a.path}: {e}; fix its mask, or drop the image") from e
    if m.size and (int(m.max()) < n or not ((m >= n) & (m != 255)).any()): return m
    values,counts = np.unique(m[(m >= n) & (m != 255)], return_counts=True)
    found = ', '.join(f'{v} ({k} pixels)' for v,k in zip(values[:8].tolist(), counts.tolist()))
    raise AnnotationError(f"{a.path}: its mask has {found}, but there are {n} classes, 0 to {n-1}, and 255 for void; "
                          "list all classes in `codes`, or map values to void with `read_masks(..., void=...)`")

def annotation_of(
    a, # Annotation
):
    "`a` unchanged, for blocks that use several of its fields"
    return a

def object_bboxes(
    a, # Annotation
):     # (n, 4) float32 pixels
    "The boxes of `a`. Raises `AnnotationError` if they are not annotated"
    if a.bboxes is None: raise AnnotationError(
        f"{a.path}: boxes are not annotated (`bboxes` is None); drop the image, or pass bboxes=np.zeros((0, 4)) if it "
        "has no objects")
    return a.bboxes

def object_masks(
    a, # Annotation
):     # list of masks, one for each box
    "The masks of `a`. Raises `AnnotationError` if they are not annotated, and there are boxes"
    if a.masks is None and len(object_bboxes(a)): raise AnnotationError(
        f"{a.path}: {len(a.bboxes)} boxes, but no masks (`masks` is None); annotate them, drop the image, or train "
        "on the boxes (`detection_dls`)")
    return a.masks or []

@checked()
def check_masks(
    a, # Annotation
):
    """Raise `AnnotationError` for the first mask of `a` that cannot be read, or is empty and not of an ignored object;
    without decoding"""
    for i,m in enumerate(object_masks(a)):
        ignored = a.ignore is not None and a.ignore[i]
        with naming_object(a, i):
            if isinstance(m, dict): some = rle_counts.unchecked(m)[1::2].any()
            # on a canvas of one pixel, which checks the polygons but fills almost nothing
            elif isinstance(m, (list, tuple)): some = len(m) and decode_mask(m, (1, 1)) is not None
            else: some = decode_mask.unchecked(m, a.size).any()
        if not some and not ignored: raise AnnotationError(
            f"{a.path}, masks, row {i} ({a.labels[i]}): the mask is empty, but there is a box; annotate it, set "
            "`ignore` for the object, or drop it")

@contextmanager
def naming_object(a, i):
    "Context that turns a `ValueError` about the mask of object `i` of `a` into an `AnnotationError` that names both"
    try: yield
    except ValueError as e: raise AnnotationError(f"{a.path}, masks, row {i} ({a.labels[i]}): {e}") from None
