"Matching of detections and objects, by the rules of COCO and PASCAL VOC"
from __future__ import annotations
from typing import NamedTuple
import numpy as np, pandas as pd
from ..arguments import IOU, checked, nearest
from ..data.annotation import vocab_of
from ..data.errors import AnnotationError
from ..data.targets import NO_OBJECT

__all__ = ['match_detections']

# In all functions `annotations` is the ground truth, list[Annotation] with bboxes, where `ignore` marks crowds and
# difficult objects; `predictions` is a list[Annotation] of the same images in the same order, with bboxes and scores;
# `vocab` is the list of class names; `NO_OBJECT` in it is ignored; None: the names that occur in the ground truth

# --- input

class ObjectTable(NamedTuple):
    "The objects of all images, one after the other"
    image:np.ndarray   # (n,) index of the image
    row:np.ndarray     # (n,) index among its objects
    label:np.ndarray   # (n,) index into the vocab
    bboxes:np.ndarray  # (n, 4) float64 x1 y1 x2 y2 in pixels
    ignore:np.ndarray  # (n,) bool; of the ground truth
    scores:np.ndarray  # (n,) float32 in [0, 1]; of detections

def read_objects(annotations, predictions, vocab):
    "(vocab, ground truth, detections), checked"
    if len(annotations) != len(predictions): raise ValueError(
        f"{len(annotations)} annotations but {len(predictions)} predictions; expected one for each image, empty ones "
        "included")
    for i,(a,p) in enumerate(zip(annotations, predictions)):
        if a.path != p.path: raise ValueError(f"image {i} is {a.path} in annotations but {p.path} in predictions; "
                                              "expected the same images in the same order")
        for o,what in ((a, 'annotation'), (p, 'prediction')):
            if o.bboxes is None: raise AnnotationError(f"{o.path}: {what} {i} has no bboxes; without objects "
                                                       "pass an empty (0, 4) array")
        if p.scores is None and p.labels: raise AnnotationError(
            f"{p.path}: prediction {i} has no scores; expected one for each of its {len(p.labels)} boxes, as "
            "`annotate` returns them")
    vocab = [o for o in (vocab_of(annotations) if vocab is None else vocab) if o != NO_OBJECT]
    return vocab,_objects(annotations, vocab),_objects(predictions, vocab)

def _objects(annotations, vocab):
    ids,n = {o: i for i,o in enumerate(vocab)},[len(a.labels) for a in annotations]
    if len(ids) < len(vocab): raise ValueError(f"a class appears twice in vocab: {sorted(vocab)}")
    for a in annotations:
        for o in set(a.labels) - ids.keys(): raise ValueError(
            f"{a.path}: class {o!r} is not among the {len(vocab)} of the vocab{nearest(o, vocab)}; pass vocab= with "
            "all classes of the model (None takes those of the ground truth)")
    def stack(f, dtype, *shape):
        return np.concatenate([np.empty((0, *shape), dtype), *map(f, annotations)], dtype=dtype, casting='unsafe')
    first = np.cumsum([0, *n], dtype=int)[:-1]
    return ObjectTable(np.repeat(np.arange(len(n)), n), np.arange(sum(n)) - np.repeat(first, n),
                       np.array([ids[o] for a in annotations for o in a.labels], int),
                       stack(lambda a: a.bboxes, np.float64, 4),
                       stack(lambda a: np.zeros(len(a.labels)) if a.ignore is None else a.ignore, bool),
                       stack(lambda a: np.zeros(len(a.labels)) if a.scores is None else a.scores, np.float32))

def mean_or_nan(x):
    "Mean of the values above COCO's -1; nan if there are none"
    return float(x[x > -1].mean()) if (x > -1).any() else float('nan')   # -1: no ground truth

# --- matching

def _pairs(truth, dets, within_class=True):
    "Indices of detection and object of all pairs within an image and, with `within_class`, within a class"
    n = max(truth.label.max(initial=0), dets.label.max(initial=0)) + 1 if within_class else 1
    key_t,key_d = (o.image*n + (o.label if within_class else 0) for o in (truth, dets))
    order  = np.argsort(key_t, kind='stable')
    lo,hi  = (np.searchsorted(key_t[order], key_d, side) for side in ('left', 'right'))
    d      = np.repeat(np.arange(len(key_d)), hi-lo)
    within = np.arange(len(d)) - np.repeat(np.cumsum(hi-lo) - (hi-lo), hi-lo)
    return d,order[lo[d]+within]

def _overlaps(a, b, crowd): # (n, 4), (n, 4), (n,) bool -> (n,)
    "IoU of each box of `a` with its partner in `b`; the share of `a` inside `b` where that is a `crowd`"
    area  = lambda o: (o[:,2:]-o[:,:2]).clip(0).prod(1)
    inter = area(np.c_[np.maximum(a[:,:2], b[:,:2]), np.minimum(a[:,2:], b[:,2:])])
    whole = area(a) + np.where(crowd, 0, area(b)-inter)
    return np.divide(inter, whole, out=np.zeros_like(inter), where=whole > 0)

def _in_turn(scores):
    "(n,) rank of each detection by descending score; ties in their order"
    rank = np.empty(len(scores), int)
    rank[np.argsort(-scores, kind='stable')] = np.arange(len(scores))
    return rank

def assign(d, t, overlap, turn, ignore, n, iou, rule='coco'): # (m,), (m,), (m,), (n,), (k,) bool -> (n,)
    """The target that each of `n` detections takes, -1: none, of the candidate pairs (`d`, `t`) with their `overlap`.
    Detections choose in their `turn`; a target is taken once, but those to `ignore` any number of times. 'coco': the
    free target with the highest overlap, ignored ones last, of equal overlaps the last. 'voc': the one that the
    detection overlaps most, of equal overlaps the first, or none if that is taken"""
    on = overlap >= (min(iou, 1-1e-10) if rule == 'coco' else iou)   # as in COCO, so that `iou` may be 1
    d,t,overlap = d[on],t[on],overlap[on]
    order = np.lexsort((-t, -overlap, ignore[t], turn[d]) if rule == 'coco' else (t, -overlap, turn[d]))
    d,t = d[order],t[order]
    if rule == 'voc': first = np.diff(d, prepend=-1) != 0; d,t = d[first],t[first]
    found,taken,shared = [-1]*n,[False]*len(ignore),ignore.tolist()
    for i,j in zip(d.tolist(), t.tolist()):
        if found[i] < 0 and not taken[j]: found[i],taken[j] = j,not shared[j]
    return np.array(found, int)

def match_coco(truth, dets, iou, within_class=True):
    "(n,) the object that each detection matches by COCO's rule, -1: none"
    d,t = _pairs(truth, dets, within_class)
    overlap = _overlaps(dets.bboxes[d], truth.bboxes[t], truth.ignore[t])
    return assign(d, t, overlap, _in_turn(dets.scores), truth.ignore, len(dets.label), iou)

def match_voc(truth, dets, iou):
    "(n,) the object that each detection matches by VOC's rule, -1: none; only the one that it overlaps most"
    d,t = _pairs(truth, dets)
    overlap = _overlaps(dets.bboxes[d], truth.bboxes[t], False)
    return assign(d, t, overlap, _in_turn(dets.scores), truth.ignore, len(dets.label), iou, 'voc')

def verdicts(found, truth):
    "(n,) bool, (n,) bool: true positives and ignored detections; the others are false positives"
    ignored = np.append(truth.ignore, False)[found]   # -1 finds the False that was appended
    return (found >= 0) & ~ignored,ignored

@checked(iou=IOU)
def match_detections(
    annotations,  # list[Annotation], the ground truth
    predictions,  # list[Annotation] of the same images in the same order
    iou:float=.5, # least IoU of a true positive, in (0, 1]
    vocab=None,   # list of class names; None (default): those of `annotations`, sorted
) -> pd.DataFrame:# a row for each detection, in their order: image (its index), row (index among the image's
                  # detections), label, score, hit (true positive), ignored (neither: false positive), target (index of
                  # the object in its annotation, -1: none), iou (with that object, else nan)
    """Match detections with objects by COCO's rule: by descending score (ties in their order), each takes the unmatched
    object of its class with the highest IoU, if that is at least `iou`. A detection without a match of which at least
    the share `iou` lies in an object with `ignore` is ignored; its `iou` is that share. `voc_ap` uses VOC's rule"""
    vocab,truth,dets = read_objects(annotations, predictions, vocab)
    found = match_coco(truth, dets, iou)
    hit,ignored = verdicts(found, truth)
    some,overlap,row = found >= 0,np.full(len(found), np.nan),np.full(len(found), -1)
    row[some] = truth.row[found[some]]
    overlap[some] = _overlaps(dets.bboxes[some], truth.bboxes[found[some]], truth.ignore[found[some]])
    return pd.DataFrame(dict(image=dets.image, row=dets.row, label=np.array(vocab, object)[dets.label],
                             score=dets.scores, hit=hit, ignored=ignored, target=row, iou=overlap))
