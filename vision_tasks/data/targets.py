"Targets of an `Annotation`: its labels, points, boxes and masks, checked"
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

__all__ = ['path_of', 'label_set', 'check_labels', 'point_pairs', 'mirror_points', 'marked_points', 'NO_OBJECT',
           'the_object', 'object_label', 'object_bbox', 'clip_objects', 'class_mask', 'annotation_of', 'object_bboxes',
           'object_masks', 'check_masks']

def path_of(o):
    "The file of an `Annotation`; anything else as it is"
    return o.path if isinstance(o, Annotation) else o

def label_set(a):
    "The labels of `a`, each once; a list, since a transform takes a tuple for several items"
    return sorted(set(a.labels))

@checked(vocab=several(instance(str, what="a name"), "a list of names"))
def check_labels(annotations, vocab):
    "Raise `AnnotationError` for the first label not in `vocab`, with the nearest name and how many pictures have such"
    known,bad = set(vocab),[]
    for i,a in enumerate(annotations): bad += [(i, a, o) for o in a.labels if o not in known]
    if not bad: return
    i,a,o = bad[0]
    what = "an empty label" if o == '' else f"label {o!r}, which is not in the vocab of {len(vocab)} names"
    raise AnnotationError(f"{a.path}, row {i}: {what} ({len({j for j,*_ in bad})} pictures have such labels)"
                          f"{nearest(o, vocab)}; mend the label, or add it to the vocab")

# --- points

@checked(what=TEXT, k=whole(1), vocab=several(instance(str, int, np.integer, what="a name"), "a list of names"))
def point_pairs(pairs, vocab, what, k=None):
    "`pairs` of names or indices of the `k` points called `vocab`, as indices, None as it is; `what` is named in errors"
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
            raise ValueError(f"{what}: expected a list of pairs such as ('left_eye', 'right_eye'); it holds {brief(p)}")
    return [tuple(map(index, p)) for p in pairs]

@checked(p=Kind("a tensor (..., k, 2) of points", lambda o: isinstance(o, Tensor) and o.ndim > 1 and o.shape[-1] == 2))
def mirror_points(p:Tensor, flip_pairs) -> Tensor:   # (..., k, 2) -> (..., k, 2)
    "The points `p` of a mirrored image, those of each of `flip_pairs` (indices) exchanged: what was left is right"
    return swap_points(p, point_pairs(flip_pairs, range(p.shape[-2]), 'flip_pairs'))

def swap_points(p, flip_pairs):
    "`mirror_points`, unchecked: it is called for each item and batch"
    if flip_pairs is None and p.shape[-2] > 1:
        raise ValueError(f"the picture is mirrored, but it is not known which of its {p.shape[-2]} points then change "
                         "places: pass flip_pairs=[('left_eye', 'right_eye'), ...], [] where none do, or do not mirror "
                         "(JointTransform(flip=0), aug_transforms(do_flip=False))")
    idxs = list(range(p.shape[-2]))
    for l,r in flip_pairs or []: idxs[l],idxs[r] = r,l
    return p[..., idxs, :]

def marked_points(a):
    "(k, 2) points of the one instance of `a`, nan where a point is not marked, or lies outside the picture"
    p = a.points.reshape(-1, 2)
    on = ((p >= 0) & (p <= a.size)).all(-1)      # nan is not
    if a.visible is not None: on &= a.visible.reshape(-1) > 0
    return np.where(on[:,None], p, np.float32(np.nan))

# --- the one object of a picture

NO_OBJECT = '#na#'   # the class of pictures without an object, fastai's word for what is not there

def the_object(a):
    "`a` with its one object, as far as in the picture, or with none; what is ignored is none. Raises for several"
    if a.ignore is not None: a = select_objects(a, ~a.ignore)
    if a.bboxes is not None: a = clip_objects(a)
    if len(a.labels) > 1: raise AnnotationError(
        f"{a.path}: {len(a.labels)} objects in one picture, but this task finds one; `largest_object(annotations)` "
        "keeps the largest, `crop_instances(annotations)` makes a picture of each")
    if NO_OBJECT in a.labels and a.bboxes is not None: raise AnnotationError(
        f"{a.path}: an object with a box is called {NO_OBJECT!r}, which is the class of images without an object; "
        "drop the object (`bboxes=np.zeros((0, 4)), labels=[]`), or rename its class")
    if not a.labels and a.bboxes is None: raise AnnotationError(
        f"{a.path}: neither label nor box; a picture without an object has empty boxes: bboxes=np.zeros((0, 4))")
    return a

def object_label(a):
    "The label of the one object of `a`, `NO_OBJECT` where there is none; its box need not be annotated"
    return (the_object(a).labels or [NO_OBJECT])[0]

def object_bbox(a):
    "(1, 4) pixels, the box of the one object of `a`; (0, 4) where there is none, or it is not annotated"
    b = the_object(a).bboxes
    return np.zeros((0, 4), np.float32) if b is None else b

@checked()
def clip_objects(a):
    "`a` with its boxes clipped to the picture; objects without an area in it go"
    hi = np.array([*a.size]*2, dtype=np.float32)
    b = object_bboxes(a).clip(0, hi)
    keep = (b[:,2:] > b[:,:2]).all(1)
    if keep.all() and (b == a.bboxes).all(): return a
    return select_objects(replace(a, bboxes=b), keep)

def class_mask(a, n):
    "(h, w) class indices of `a`; raises where there is no mask, or an index beyond `n` classes, with the counts"
    if a.mask is None: raise AnnotationError(
        f"{a.path}: no class mask (`mask` is None); leave the picture out, or say where its mask is (`read_masks`)")
    try: m = decode_class_mask(a.mask, a.size)
    except OSError as e: raise AnnotationError(f"{a.path}: {e}; mend its mask, or leave the picture out") from e
    if m.size and (int(m.max()) < n or not ((m >= n) & (m != 255)).any()): return m
    values,counts = np.unique(m[(m >= n) & (m != 255)], return_counts=True)
    said = ', '.join(f'{v} ({k} pixels)' for v,k in zip(values[:8].tolist(), counts.tolist()))
    raise AnnotationError(f"{a.path}: its mask holds {said}, but there are {n} classes, 0 to {n-1}, and 255 for void; "
                          "name all classes in `codes`, or let `read_masks(..., void=...)` turn values into void")

def annotation_of(a):
    "`a` as it is, for blocks that want all of it"
    return a

def object_bboxes(a):
    "(n, 4) boxes of `a`; raises where they are not annotated"
    if a.bboxes is None: raise AnnotationError(
        f"{a.path}: boxes are not annotated (`bboxes` is None); a picture without objects has bboxes=np.zeros((0, 4)), "
        "others are to be left out")
    return a.bboxes

def object_masks(a):
    "The masks of `a`, one for each box; raises where they are not annotated"
    if a.masks is None and len(object_bboxes(a)): raise AnnotationError(
        f"{a.path}: {len(a.bboxes)} boxes, but no masks (`masks` is None); draw them, leave the picture out, or train "
        "on the boxes (`detection_dls`)")
    return a.masks or []

@checked()
def check_masks(a):
    """Raise `AnnotationError` for the first mask of `a` that cannot be read, or is empty while its object is not to be
    ignored; nothing is decoded"""
    for i,m in enumerate(object_masks(a)):
        ignored = a.ignore is not None and a.ignore[i]
        with naming_object(a, i):
            if isinstance(m, dict): some = rle_counts.unchecked(m)[1::2].any()
            # a canvas of one pixel: the outline is checked, and hardly anything is filled
            elif isinstance(m, (list, tuple)): some = len(m) and decode_mask(m, (1, 1)) is not None
            else: some = decode_mask.unchecked(m, a.size).any()
        if not some and not ignored: raise AnnotationError(
            f"{a.path}, masks, row {i} ({a.labels[i]}): the mask is empty, though there is a box; draw it, mark the "
            "object as to be ignored (`ignore`), or leave it out")

@contextmanager
def naming_object(a, i):
    "A while in which a `ValueError` about the mask of object `i` of `a` becomes an `AnnotationError` that names both"
    try: yield
    except ValueError as e: raise AnnotationError(f"{a.path}, masks, row {i} ({a.labels[i]}): {e}") from None
