"The core type: ground truth or predictions of one image. A data set is a list of them"
from __future__ import annotations
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
import numpy as np
from ..arguments import KINDS, PATH, brief, checked, instance, is_whole, number, several
from ..ops.masks import decode_mask
from ..ops.polygons import as_float32
from .class_masks import MaskFile
from .errors import AnnotationError
from .image import open_image, stored_size, wh

__all__ = ['SPLITS', 'Annotation', 'vocab_of', 'select_objects']

SPLITS = ('train', 'valid', 'test')

@dataclass(frozen=True, eq=False)
class Annotation:
    """Ground truth or predictions of one image. None means not annotated; an empty field, that there are no objects.
    Arrays are read-only. Raises `AnnotationError` for values without a meaning"""
    path:Path                     # image file; None for an image without a file
    size:tuple[int,int]           # (w, h) in pixels of the image as shown (EXIF orientation applied)
    labels:list[str] = field(default_factory=list) # of the image (multilabel) or one per box; class names, never ids
    bboxes:np.ndarray = None      # (n, 4) float32 x1 y1 x2 y2, pixels, 0-based, right and bottom edge exclusive
    points:np.ndarray = None      # (k, 2), or (n, k, 2) with boxes; float32 x y, pixels; nan: not marked
    visible:np.ndarray = None     # points without the last axis, uint8: 0 not marked, 1 hidden, 2 visible
    masks:list = None             # one per box: a list of polygons, stored as (m, 2) float32; an RLE; or an (h, w) bool
                                  # array. `decode_mask` decodes them
    mask:Path|np.ndarray = None   # (h, w) class index of every pixel, 255: void; or the path of such a file, or a
                                  # `MaskFile` for a file with other values; `decode_class_mask` reads them all
    ignore:np.ndarray = None      # (n,) bool: crowd or difficult; excluded from loss and metrics
    scores:np.ndarray = None      # (n,) or one per label, in [0, 1]; predictions only
    group:str|int = None          # keeps related images (person, video, patient) on one side of a split
    split:str = None              # 'train', 'valid' or 'test'; None: not assigned

    def __post_init__(self):
        put = lambda **kw: [object.__setattr__(self, k, v) for k,v in kw.items()]
        put(path=self._path(), size=self._size(), labels=self._labels())
        put(bboxes=self._bboxes())
        put(points=self._points())
        put(visible=self._visible(), masks=self._masks(), mask=self._mask())
        put(ignore=self._ignore(), scores=self._scores())
        for v in (self.bboxes, self.points, self.visible, self.ignore, self.scores):
            if v is not None: v.setflags(False)
        if not (self.split is None or isinstance(self.split, str) and self.split in SPLITS):
            self._fail('split', f"one of {SPLITS} or None", brief(self.split))
        if not (self.group is None or isinstance(self.group, str) and self.group or is_whole(self.group)):
            self._fail('group', "text or a whole number, or None", brief(self.group))

    # pickle and deepcopy make writable arrays of read-only ones
    def __setstate__(self, state):
        masks = state['masks'] and [_stored_mask(m) for m in state['masks']]
        self.__dict__.update({k: _read_only(v) for k,v in state.items()}, masks=masks)

    def same_as(
        self,
        other:Annotation, # the one to compare with
        tol:float=0.,     # by how many pixels coordinates of boxes and points may differ
    ) -> bool:
        """Whether all fields are equal. Object masks are compared by their pixels, a class mask in a file by its path.
        nan equals nan. Raises `ValueError` where a mask cannot be decoded"""
        ANNOTATION('other', other)
        _TOLERANCE('tol', tol)
        plain = 'path', 'size', 'labels', 'group', 'split'
        return (all(getattr(self, k) == getattr(other, k) for k in plain) and
                all(_close(getattr(self, k), getattr(other, k), tol) for k in ('bboxes', 'points')) and
                all(_close(getattr(self, k), getattr(other, k)) for k in ('visible', 'ignore', 'scores')) and
                _same_class_mask(self.mask, other.mask) and _same_masks(self.masks, other.masks, self.size))

    def _fail(self, name, expected, came, todo=''):
        todo = f"; {todo}" if todo else ''
        raise AnnotationError(f"{self.path or 'image without a file'}, {name}: expected {expected}, got {came}{todo}")

    def _array(self, name, dtype, *shapes, expected):
        "Field `name` as an array of `dtype` with one of `shapes`, where None is any length"
        try: a = np.array(getattr(self, name), dtype=dtype)
        except (TypeError, ValueError, OverflowError, RuntimeError) as e:   # RuntimeError: from torch
            self._fail(name, expected, f"{brief(getattr(self, name))} ({e})")
        if a.shape == (0,) and len(shapes[0]) > 1 and (None in shapes[0] or 0 in shapes[0]):
            a = a.reshape([0 if n is None else n for n in shapes[0]])
        if not any(a.ndim == len(s) and all(n is None or n == m for n,m in zip(s, a.shape)) for s in shapes):
            self._fail(name, expected, f"an array of shape {a.shape}" if a.ndim else brief(getattr(self, name)))
        return a

    def _path(self):
        if self.path is None: return None
        if PATH.ok(self.path): return Path(self.path)
        raise AnnotationError(f"path: expected the path of an image file, or None, got {brief(self.path)}")

    def _size(self):
        try: w,h = self.size; w,h,ok = int(w),int(h),int(w) == w and int(h) == h and w > 0 and h > 0
        except (TypeError, ValueError, OverflowError): ok = False   # OverflowError: int(inf)
        if not ok: self._fail('size', "(w, h) as two positive whole numbers of pixels", brief(self.size))
        return w,h

    def _labels(self):
        if isinstance(self.labels, str):
            self._fail('labels', "a list of names", brief(self.labels), f"write [{brief(self.labels)}]")
        try: labels = list(self.labels if not isinstance(self.labels, (bytes, Mapping, Set)) else None)
        except TypeError: self._fail('labels', "a list of names", brief(self.labels), "write [] for no labels")
        for i,o in enumerate(labels):
            if not isinstance(o, str):
                came = f"{brief(o)} of type {type(o).__name__}"
                self._fail(f'labels, row {i}', "a class name (ids are used inside the DataBlock only)", came)
        return [str(o) for o in labels]   # also of numpy's strings

    def _bboxes(self):
        if self.bboxes is None: return None
        b = self._array('bboxes', np.float32, (None, 4), expected="(n, 4) numbers x1 y1 x2 y2 in pixels")
        for bad,what in ((~np.isfinite(b).all(1), "finite numbers"),
                         ((b[:,:2] > b[:,2:]).any(1), "x1 <= x2 and y1 <= y2")):
            if bad.any():
                i = bad.argmax()
                self._fail(f'bboxes, row {i}', what, b[i].tolist(), "fix the box, or drop the object")
        if len(self.labels) != len(b):
            self._fail('labels', f"one label for each of the {len(b)} boxes", f"{len(self.labels)} labels")
        return b

    def _points(self):
        if self.points is None: return None
        shape,what = ((None, 2), "(k, 2) numbers x y in pixels") if self.bboxes is None else (
                      (len(self.bboxes), None, 2), f"(n, k, 2) numbers x y in pixels, n = {len(self.bboxes)} boxes")
        p = self._array('points', np.float32, shape, expected=what)
        bad = np.isinf(p).any(-1) | (np.isnan(p).sum(-1) == 1)
        if bad.any():
            i = tuple(np.argwhere(bad)[0].tolist())
            self._fail(f'points, row {i}', "finite x and y, or nan twice for a point that is not marked", p[i].tolist())
        return p

    def _visible(self):
        if self.visible is None: return None
        if self.points is None: self._fail('visible', "points beside it", "no points")
        shape = self.points.shape[:-1]
        v = self._array('visible', np.float64, shape, expected=f"an array of shape {shape}, as points")
        bad = ~np.isin(v, (0, 1, 2)) | ((v > 0) & np.isnan(self.points[...,0]))
        if bad.any():
            i = tuple(np.argwhere(bad)[0].tolist())
            self._fail(f'visible, row {i}', "0 not marked, 1 hidden or 2 visible, and 0 where the point is nan",
                       f"{v[i]:g} at {self.points[i].tolist()}")
        return v.astype(np.uint8)

    def _masks(self):
        if self.masks is None: return None
        if not isinstance(self.masks, Iterable) or isinstance(self.masks, (str, bytes, Mapping, Set)):
            self._fail('masks', "a list of masks, one for each box", brief(self.masks))
        masks = list(self.masks)
        if self.bboxes is None: self._fail('masks', "bboxes beside them, one for each mask", "no bboxes")
        if len(masks) != len(self.bboxes):
            self._fail('masks', f"one mask for each of the {len(self.bboxes)} boxes", f"{len(masks)} masks")
        for i,m in enumerate(masks):
            if not isinstance(m, (list, tuple, dict, np.ndarray)):
                self._fail(f'masks, row {i}', "a list of polygons, an RLE or a bool array", brief(m))
            if isinstance(m, dict) and not {'size', 'counts'} <= m.keys():
                self._fail(f'masks, row {i}', "an RLE with 'size' and 'counts'", f"a dict of {brief(list(m))}")
            if isinstance(m, dict) and not isinstance(m['size'], (list, tuple, np.ndarray)):
                self._fail(f'masks, row {i}', "an RLE whose 'size' is [h, w]", brief(m['size']))
            hw = None
            if isinstance(m, dict): hw = tuple(m['size'])
            elif isinstance(m, np.ndarray) and m.ndim == 2: hw = m.shape
            if hw is not None and hw != self.size[::-1]:
                self._fail(f'masks, row {i}', f"(h, w) = {self.size[::-1]}, the size of the image", f"(h, w) = {hw}")
        return [_stored_mask(m) for m in masks]

    def _mask(self):
        if self.mask is None: return None
        if isinstance(self.mask, MaskFile): return self.mask
        if PATH.ok(self.mask): return Path(self.mask)
        m = np.asarray(None if isinstance(self.mask, str) else self.mask)
        if m.shape != self.size[::-1]:
            self._fail('mask', f"(h, w) = {self.size[::-1]} class indices", f"an array of shape {m.shape}")
        if m.dtype.kind not in 'ub' and (m.dtype.kind != 'i' or m.min(initial=0) < 0):
            came = f"type {m.dtype}, smallest {m.min(initial=0)}"
            self._fail('mask', "class indices that are whole numbers, 0 or more", came)
        return _read_only(m.view())   # not a copy: class masks are large

    def _ignore(self):
        if self.ignore is None: return None
        if self.bboxes is None: self._fail('ignore', "bboxes beside it", "no bboxes")
        what = f"({len(self.bboxes)},) booleans, one per box"
        v = self._array('ignore', np.float64, (len(self.bboxes),), expected=what)   # as bool, 'False' would be True
        if not np.isin(v, (0, 1)).all(): self._fail('ignore', what, brief(self.ignore))
        return v.astype(bool)

    def _scores(self):
        if self.scores is None: return None
        n = len(self.labels)
        s = self._array('scores', np.float32, (n,), expected=f"({n},) numbers, one per label")
        bad = ~((s >= 0) & (s <= 1))
        if bad.any(): i = bad.argmax(); self._fail(f'scores, row {i}', "a number in [0, 1]", s[i])
        return s

    def __repr__(self):
        def brief(k, v):
            if isinstance(v, np.ndarray): return v.shape
            return len(v) if k == 'masks' else repr(v) if isinstance(v, str) else v
        fields = 'bboxes','points','masks','mask','scores','group','split'
        parts = [f"{k}={brief(k, v)}" for k in fields if (v := getattr(self, k)) is not None]
        return f"Annotation({', '.join([str(self.path), f'{self.size[0]}x{self.size[1]}', str(self.labels), *parts])})"

def _read_only(v):   # our own array, which is changed, or another value
    if isinstance(v, np.ndarray): v.setflags(write=False)
    return v

def _stored_mask(m):   # -> `m` with its polygons in float32, other arrays as read-only views of the caller's
    if isinstance(m, np.ndarray): return _read_only(m.view())
    if not isinstance(m, dict): return list(map(as_float32, m))
    if not any(isinstance(v, np.ndarray) for v in m.values()): return m
    return {k: _read_only(v.view()) if isinstance(v, np.ndarray) else v for k,v in m.items()}

def _close(a, b, tol=0.):   # of two arrays or None
    if a is None or b is None: return a is b
    return a.shape == b.shape and np.allclose(a.astype(float), b.astype(float), rtol=0, atol=tol, equal_nan=True)

def _same_class_mask(a, b):
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray): return np.array_equal(a, b)
    if isinstance(a, MaskFile) and isinstance(b, MaskFile): return a.same_as(b)
    return type(a) is type(b) and a == b

def _same_masks(a, b, size):
    if a is None or b is None: return a is b
    return len(a) == len(b) and all(np.array_equal(decode_mask(m, size), decode_mask(o, size)) for m,o in zip(a, b))

_TOLERANCE  = number(0)
ANNOTATION  = instance(Annotation, what="an Annotation")
ANNOTATIONS = several(ANNOTATION, "a list of Annotation, as the readers return it",
                      todo=lambda o: "write [annotation] for one" if isinstance(o, Annotation) else
                      "read the file first, with `read_coco`, `read_voc`, ..." if isinstance(o, (str, Path)) else '')
KINDS.update(a=ANNOTATION, annotations=ANNOTATIONS, predictions=ANNOTATIONS)

@checked()
def vocab_of(
    annotations, # list[Annotation]
) -> list[str]:
    "The class names in `annotations`, sorted, so that ids depend neither on file order nor on the hash seed"
    return sorted({o for a in annotations for o in a.labels})

@checked()
def select_objects(
    a:Annotation,     # with boxes
    keep,             # (k,) indices of objects, in the wanted order; or (n,) bool
) -> Annotation:
    "Keep some objects of `a`, with all of their fields. Raises `AnnotationError` if `a` has no boxes"
    idxs = _object_numbers(a, keep)
    some = {k: v if v is None else v[idxs] for k,v in
            ((k, getattr(a, k)) for k in ('bboxes', 'points', 'visible', 'ignore', 'scores'))}
    return replace(a, labels=[a.labels[i] for i in idxs], masks=None if a.masks is None else [a.masks[i] for i in idxs],
                   **some)

def _object_numbers(a, keep):   # -> (k,) int, from 0
    if a.bboxes is None:
        raise AnnotationError(f"{a.path}: no boxes (`bboxes` is None), so there are no objects to select")
    n = len(a.bboxes)
    try: k = np.asarray(keep)
    except (TypeError, ValueError, RuntimeError): k = np.array(None)
    if k.shape == (0,): k = k.astype(int)
    if k.dtype == bool and k.shape == (n,): return np.flatnonzero(k)
    if k.dtype.kind in 'iu' and k.ndim == 1 and ((k >= -n) & (k < n)).all(): return np.arange(n)[k]
    raise ValueError(f"keep: expected indices of objects below {n}, or ({n},) bool, got {brief(keep)} ({a.path})")

def unturned(path, size) -> str:
    "A note for messages if `size` is that of the image before its EXIF orientation is applied, otherwise an empty text"
    with open_image(path) as im: stored = stored_size(im)
    return f" as shown ({wh(size)} as stored, before its EXIF orientation is applied)" if size == stored else ''
