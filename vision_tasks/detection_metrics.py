"""Scores of object detection and instance segmentation, in pixels of the files: average precision by COCO and by PASCAL
VOC, and what one IoU and one threshold make of the detections"""
from __future__ import annotations
from typing import NamedTuple
import numpy as np, pandas as pd
from fastai.learner import Metric
from fastai.torch_core import to_detach
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_masks
from .arguments import COUNT, IOU, TEXT, check_thresh, checked, choice, nearest
from .data.annotation import AnnotationError, vocab_of
from .data.blocks import NO_OBJECT
from .data.coco import coco_shape       # so that shapes and areas are those which `write_coco` writes
from .ops.colours import class_colours
from .ops.masks import encode_rle

__all__ = ['coco_ap', 'voc_ap', 'match_detections', 'detection_curve', 'plot_precision_recall', 'plot_f_threshold',
           'best_detection_threshold', 'detection_confusion', 'MeanAP']

# In all functions `annotations` is the truth, list[Annotation] with bboxes, where `ignore` marks what is a crowd or
# difficult; `predictions` is a list[Annotation] of the same pictures in the same order, with bboxes and scores; `vocab`
# is the names that count, without `NO_OBJECT` (which is left out where it stands among them), None = those of the truth

# --- what comes in

class _Objects(NamedTuple):
    "The objects of all pictures, one under the other"
    picture:np.ndarray # (n,) index of the annotation
    row:np.ndarray     # (n,) index among its objects
    label:np.ndarray   # (n,) index into the vocab
    bboxes:np.ndarray  # (n, 4) float64 x1 y1 x2 y2 in pixels
    ignore:np.ndarray  # (n,) bool; of the truth
    scores:np.ndarray  # (n,) float32 in [0, 1]; of detections

def _read(annotations, predictions, vocab):
    "(vocab, truth, detections), checked"
    if len(annotations) != len(predictions): raise ValueError(
        f"{len(annotations)} annotations but {len(predictions)} predictions; expected one for each picture, empty ones "
        "included")
    for i,(a,p) in enumerate(zip(annotations, predictions)):
        if a.path != p.path: raise ValueError(f"picture {i} is {a.path} in annotations but {p.path} in predictions; "
                                              "expected the same pictures in the same order")
        for o,what in ((a, 'annotation'), (p, 'prediction')):
            if o.bboxes is None: raise AnnotationError(f"{o.path}: {what} {i} has no bboxes; an empty (0, 4) array "
                                                       "says that there is nothing")
        if p.scores is None and p.labels: raise AnnotationError(
            f"{p.path}: prediction {i} has no scores; expected one for each of its {len(p.labels)} boxes, as "
            "`annotate` gives them")
    vocab = [o for o in (vocab_of(annotations) if vocab is None else vocab) if o != NO_OBJECT]
    return vocab,_objects(annotations, vocab),_objects(predictions, vocab)

def _objects(annotations, vocab):
    ids,n = {o: i for i,o in enumerate(vocab)},[len(a.labels) for a in annotations]
    if len(ids) < len(vocab): raise ValueError(f"the vocab has a name twice: {sorted(vocab)}")
    for a in annotations:
        for o in set(a.labels) - ids.keys(): raise ValueError(
            f"{a.path}: {o!r} is none of the {len(vocab)} names of the vocab{nearest(o, vocab)}; pass vocab= with all "
            "that the model knows (None takes the names of the truth)")
    def stack(f, dtype, *shape):
        return np.concatenate([np.empty((0, *shape), dtype), *map(f, annotations)], dtype=dtype, casting='unsafe')
    first = np.cumsum([0, *n], dtype=int)[:-1]
    return _Objects(np.repeat(np.arange(len(n)), n), np.arange(sum(n)) - np.repeat(first, n),
                    np.array([ids[o] for a in annotations for o in a.labels], int),
                    stack(lambda a: a.bboxes, np.float64, 4),
                    stack(lambda a: np.zeros(len(a.labels)) if a.ignore is None else a.ignore, bool),
                    stack(lambda a: np.zeros(len(a.labels)) if a.scores is None else a.scores, np.float32))

def _mean(x): return float(x[x > -1].mean()) if (x > -1).any() else float('nan')   # COCO's -1: no truth

# --- COCO

_IOU_TYPE = choice('bbox', 'segm')

@checked(iou_type=_IOU_TYPE)
def coco_ap(
    annotations,       # list[Annotation], the truth
    predictions,       # list[Annotation] of the same pictures
    vocab=None,        # list of names
    iou_type='bbox',   # 'bbox' or 'segm': what has to overlap, boxes or masks
    max_dets:int=100,  # that count, of a picture and a class: those with the highest scores
    per_class=False,   # a row for each class in place of the means
):                     # dict name -> in [0, 1]; or DataFrame label, n (truths that count), ap, ap50, ap75, ar
    """COCO's AP and AR, to the figure those of pycocotools for the files that `write_coco` writes: 'map', 'map50',
    'map75', 'map_small', 'map_medium', 'map_large', 'ar_1', 'ar_10', 'ar_100' (at most so many detections of a picture
    and a class), 'ar_small', 'ar_medium', 'ar_large'.

    Means over the classes that have truth (in the range of area) and, but for 50 and 75, over the IoUs .5, .55 to .95;
    precision is interpolated at 101 recalls. Without truth a figure is nan, with truth but no detection 0. Of equal
    scores the first counts first. Truth with `ignore` is a crowd: it may take any number of detections, by the share of
    each that lies inside, which then count nowhere.

    The area that makes a truth small (up to 32²), medium or large (from 96²) is its mask's wherever it has one, for
    boxes too; that of a detection is its box's, for 'segm' its mask's (as of COCO's results without 'bbox'). The mask
    [] is empty"""
    vocab,truth,dets = _read(annotations, predictions, vocab)
    caps = [*(o for o in (1, 10) if o < max_dets), int(max_dets)]
    p,r  = _evaluated(annotations, predictions, truth, dets, len(vocab), iou_type, caps)
    if per_class:
        of_class = lambda c: dict(ap=_mean(p[:,:,c,0,-1]), ap50=_mean(p[0,:,c,0,-1]), ap75=_mean(p[5,:,c,0,-1]),
                                  ar=_mean(r[:,c,0,-1]))
        return _per_class(vocab, truth, map(of_class, range(len(vocab))), ['ap', 'ap50', 'ap75', 'ar'])
    sizes = list(enumerate(('small', 'medium', 'large'), 1))
    return dict(map=_mean(p[...,0,-1]), map50=_mean(p[0,...,0,-1]), map75=_mean(p[5,...,0,-1]),
                **{f'map_{o}': _mean(p[...,i,-1]) for i,o in sizes},
                **{f'ar_{o}':  _mean(r[...,0,i]) for i,o in enumerate(caps)},
                **{f'ar_{o}':  _mean(r[...,i,-1]) for i,o in sizes})

def _per_class(vocab, truth, rows, columns):
    n = np.bincount(truth.label[~truth.ignore], minlength=len(vocab))
    return pd.concat([pd.DataFrame(dict(label=vocab, n=n)), pd.DataFrame(list(rows), columns=columns)], axis=1)

def _evaluated(annotations, predictions, truth, dets, n_classes, iou_type, caps):
    "COCO's precision (10 IoUs, 101 recalls, c, 4 areas, caps) and recall (10, c, 4, caps); -1 where there is no truth"
    if not annotations or not n_classes:
        return np.full((10, 101, n_classes, 4, len(caps)), -1.),np.full((10, n_classes, 4, len(caps)), -1.)
    shapes = [np.c_[o.bboxes[:,:2], o.bboxes[:,2:]-o.bboxes[:,:2]] for o in (truth, dets)]
    areas  = [o[:,2]*o[:,3] for o in shapes]
    areas[0] = _truth_areas(annotations, areas[0])
    if iou_type == 'segm':
        shapes = [[_rle(a, i) for a in o for i in range(len(a.labels))] for o in (annotations, predictions)]
        areas[1] = np.asarray(coco_masks.area(shapes[1]), float) if shapes[1] else areas[1]
    e = _ArrayEval(truth, dets, *shapes, *areas, len(annotations), n_classes, caps)
    e.evaluate(); e.accumulate()
    return e.eval['precision'],e.eval['recall']

class _ArrayEval(COCOeval_faster):
    "The evaluation of arrays: overlaps are taken from these, so that a box never becomes a list"
    def __init__(self, truth, dets, truth_shapes, det_shapes, truth_areas, det_areas, n_pictures, n_classes, caps):
        # 'bbox' for masks too: the type decides only where overlaps come from
        super().__init__(_indexed(truth, truth_areas, n_pictures, n_classes),
                         _indexed(dets, det_areas, n_pictures, n_classes), 'bbox')
        self.params.maxDets = caps
        key,order = zip(*(_sorted(o, n_classes) for o in (truth, dets)))
        pick = lambda shapes, order: [shapes[i] for i in order] if isinstance(shapes, list) else shapes[order]
        self.shapes,self.crowd = list(map(pick, (truth_shapes, det_shapes), order)),truth.ignore[order[0]].astype(int)
        pairs  = np.intersect1d(*key)
        bounds = np.stack([np.searchsorted(k, pairs, side) for k in key for side in ('left', 'right')], 1)
        bounds[:,3] = np.minimum(bounds[:,3], bounds[:,2]+caps[-1])
        ids = zip((pairs//n_classes+1).tolist(), (pairs%n_classes+1).tolist())
        self.bounds = dict(zip(ids, bounds.tolist()))

    def computeIoU(self, imgId, catId):
        "Overlap of each detection, by falling score, with each truth of a picture and a class"
        if (imgId, catId) not in self.bounds: return []
        t0,t1,d0,d1 = self.bounds[imgId, catId]
        return coco_masks.iou(self.shapes[1][d0:d1], self.shapes[0][t0:t1], self.crowd[t0:t1].tolist())

def _sorted(o, n_classes):
    "The sorted keys of picture and class, and the order that sorts them, by falling score where they are equal"
    key   = o.picture*n_classes + o.label
    order = np.lexsort((-o.scores, key))
    return key[order],order

def _indexed(o, areas, n_pictures, n_classes):
    "`o` as the package wants it, ids from 1; dicts that hold no lists are not visited by the garbage collector"
    rows = zip(*(x.tolist() for x in (o.picture+1, o.label+1, areas, o.ignore.astype(int), o.scores)))
    coco = COCO()
    coco.dataset = dict(images=[dict(id=i+1) for i in range(n_pictures)],
                        categories=[dict(id=i+1) for i in range(n_classes)],
                        annotations=[dict(id=i, image_id=p, category_id=c, area=a, iscrowd=g, score=s)
                                     for i,(p,c,a,g,s) in enumerate(rows, 1)])
    coco.createIndex()
    return coco

def _truth_areas(annotations, box_areas):
    "(n,) pixels, of the mask where there is one"
    objects = ((a, i) for a in annotations for i in range(len(a.labels)))
    return np.array([_shape(a, i)[1] if a.masks is not None and len(a.masks[i]) else b
                     for (a,i),b in zip(objects, box_areas)], float)

def _shape(a, i):
    "(what json has of the mask of object `i`, its area in pixels)"
    try: return coco_shape(a.masks[i])
    except ValueError as e: raise AnnotationError(f"{a.path}, masks, row {i}: {e}") from None

def _rle(a, i):
    "The mask of object `i` as compressed run lengths"
    if a.masks is None: raise AnnotationError(
        f"{a.path}: no masks for {len(a.labels)} boxes; iou_type='segm' compares masks, 'bbox' boxes")
    if not len(a.masks[i]): return encode_rle(np.zeros(a.size[::-1], bool))
    m = _shape(a, i)[0]
    if isinstance(m, dict) and isinstance(m['counts'], str): return m
    m = coco_masks.frPyObjects(m, *a.size[::-1])
    return coco_masks.merge(m) if isinstance(m, list) else m

# --- which detection finds which truth

def _pairs(truth, dets, within_class=True):
    "Indices of detection and truth for every two of one picture and, with `within_class`, of one class"
    n = max(truth.label.max(initial=0), dets.label.max(initial=0)) + 1 if within_class else 1
    key_t,key_d = (o.picture*n + (o.label if within_class else 0) for o in (truth, dets))
    order  = np.argsort(key_t, kind='stable')
    lo,hi  = (np.searchsorted(key_t[order], key_d, side) for side in ('left', 'right'))
    d      = np.repeat(np.arange(len(key_d)), hi-lo)
    within = np.arange(len(d)) - np.repeat(np.cumsum(hi-lo) - (hi-lo), hi-lo)
    return d,order[lo[d]+within]

def _overlaps(a, b, crowd): # (n, 4), (n, 4), (n,) bool -> (n,)
    "IoU of each box of `a` with its partner in `b`; the share of `a` that lies inside where that is a `crowd`"
    area  = lambda o: (o[:,2:]-o[:,:2]).clip(0).prod(1)
    inter = area(np.c_[np.maximum(a[:,:2], b[:,:2]), np.minimum(a[:,2:], b[:,2:])])
    whole = area(a) + np.where(crowd, 0, area(b)-inter)
    return np.divide(inter, whole, out=np.zeros_like(inter), where=whole > 0)

def _in_turn(scores):
    "(n,) whose turn it is when: the highest score first, of equal ones the first"
    rank = np.empty(len(scores), int)
    rank[np.argsort(-scores, kind='stable')] = np.arange(len(scores))
    return rank

def _take(d, t, truth, n):
    "(n,) the truth of each detection, -1 = none, when the pairs (`d`, `t`) are offered in their order"
    found,taken,shared = [-1]*n,[False]*len(truth.label),truth.ignore.tolist()
    for i,j in zip(d.tolist(), t.tolist()):
        if found[i] < 0 and not taken[j]: found[i],taken[j] = j,not shared[j]
    return np.array(found, int)

def _match(truth, dets, iou, within_class=True):
    "(n,) the truth that each detection gets by COCO's rule, -1 = none"
    d,t = _pairs(truth, dets, within_class)
    o   = _overlaps(dets.bboxes[d], truth.bboxes[t], truth.ignore[t])
    on  = o >= min(iou, 1-1e-10)   # as COCO has it, so that an IoU of 1 can be asked for
    d,t,o = d[on],t[on],o[on]
    # what is ignored comes last; of equal overlaps COCO takes the last truth
    order = np.lexsort((-t, -o, truth.ignore[t], _in_turn(dets.scores)[d]))
    return _take(d[order], t[order], truth, len(dets.label))

def _voc_match(truth, dets, iou):
    "(n,) the truth that each detection gets by VOC's rule, -1 = none: only the one that it overlaps most"
    d,t = _pairs(truth, dets)
    o   = _overlaps(dets.bboxes[d], truth.bboxes[t], False)
    on  = o >= iou
    d,t,o = d[on],t[on],o[on]
    order = np.lexsort((t, -o, _in_turn(dets.scores)[d]))
    d,t = d[order],t[order]
    best = np.diff(d, prepend=-1) != 0
    return _take(d[best], t[best], truth, len(dets.label))

def _verdicts(found, truth):
    "(n,) bool, (n,) bool: hit and ignored; neither is a miss"
    ignored = np.append(truth.ignore, False)[found]   # -1 is what was appended
    return (found >= 0) & ~ignored,ignored

@checked(iou=IOU)
def match_detections(
    annotations,  # list[Annotation], the truth
    predictions,  # list[Annotation] of the same pictures
    iou:float=.5, # in (0, 1]: the least overlap of a hit
    vocab=None,   # list of names
) -> pd.DataFrame:# a row for each detection, in their order: picture (index), row (of its detections), label, score,
                  # hit and ignored (neither: a false one), truth (row of the truth's objects, -1 = none), iou (with it)
    """Which detection finds which truth, by COCO's rule: the highest score first (of equal ones the first), each takes
    the truth of its class that is left with the highest IoU, `iou` at least. One that finds none, but lies by a share
    of `iou` in a truth with `ignore`, is ignored; its `iou` is that share. VOC's rule is in `voc_ap`"""
    vocab,truth,dets = _read(annotations, predictions, vocab)
    found = _match(truth, dets, iou)
    hit,ignored = _verdicts(found, truth)
    some,overlap,row = found >= 0,np.full(len(found), np.nan),np.full(len(found), -1)
    row[some] = truth.row[found[some]]
    overlap[some] = _overlaps(dets.bboxes[some], truth.bboxes[found[some]], truth.ignore[found[some]])
    return pd.DataFrame(dict(picture=dets.picture, row=dets.row, label=np.array(vocab, object)[dets.label],
                             score=dets.scores, hit=hit, ignored=ignored, truth=row, iou=overlap))

# --- PASCAL VOC

@checked(iou=IOU, points=choice(11))
def voc_ap(
    annotations,     # list[Annotation], the truth
    predictions,     # list[Annotation] of the same pictures
    vocab=None,      # list of names
    iou:float=.5,    # in (0, 1]: the least overlap of a hit
    points:int=None, # 11: mean precision at the recalls 0, .1 to 1, as in VOC2007; None: the area, as from 2010 on
    per_class=False, # a row for each class in place of the mean
):                   # mean AP in [0, 1]; or DataFrame label, n (truths that count), ap
    """PASCAL VOC's AP, the mean over the classes that have truth; nan for a class without, and where no class has any.

    The highest score first (of equal ones the first), a detection may only have the truth of its class that it overlaps
    most; that one found before, it is false. Truth with `ignore` is difficult: neither sought, nor a detection of it
    counted. Interpolated: at each recall the best precision from there on. The devkit's boxes include their last pixel,
    so that it adds 1 to their sides; ours, as `read_voc` gives them, end at the edge behind it: the IoU is the same"""
    vocab,truth,dets = _read(annotations, predictions, vocab)
    hit,ignored = _verdicts(_voc_match(truth, dets, iou), truth)
    table = _per_class(vocab, truth, [], ['ap'])
    order = np.argsort(-dets.scores, kind='stable')
    order = order[~ignored[order]]
    found = [hit[order[dets.label[order] == c]] for c in range(len(vocab))]
    table['ap'] = np.array([_voc_curve(h, n, points) for h,n in zip(found, table.n)], float)
    return table if per_class else float(table.ap.mean())

def _voc_curve(hit, n, points=None):
    "AP of detections of one class by falling score, `hit` (k,), where there are `n` truths"
    if not n: return np.nan
    tp = np.cumsum(hit)
    recall,precision = tp/n,tp/np.arange(1, len(tp)+1)
    if points is None: return _area_below(recall, precision)
    first = np.searchsorted(recall, np.arange(11)/10)   # divided as the recalls are, so that .3 is .3
    return np.append(_best_from(precision), 0)[first].mean()

def _best_from(precision): return np.maximum.accumulate(precision[::-1])[::-1]

def _area_below(recall, precision): return np.sum(np.diff(recall, prepend=0)*_best_from(precision))

# --- one threshold

class _Counted(NamedTuple):
    "The detections that are not ignored"
    vocab:list
    n:np.ndarray      # (c,) number of truths of each class
    label:np.ndarray  # (k,) index into the vocab
    scores:np.ndarray # (k,) float32
    hit:np.ndarray    # (k,) bool
    def of(self, c=None):
        "Scores, hits and number of truths of class `c`, None = of all together"
        on = slice(None) if c is None else self.label == c
        return self.scores[on],self.hit[on],self.n.sum() if c is None else self.n[c]

def _counted(annotations, predictions, iou, vocab):
    vocab,truth,dets = _read(annotations, predictions, vocab)
    hit,ignored = _verdicts(_match(truth, dets, iou), truth)
    n = np.bincount(truth.label[~truth.ignore], minlength=len(vocab))
    return _Counted(vocab, n, *(o[~ignored] for o in (dets.label, dets.scores, hit)))

def _cuts(scores, hit):
    "The distinct scores, rising (m,); hits and detections (m+1,) that stay from each of them on, and above all of them"
    order = np.argsort(scores)
    s,h   = scores[order],hit[order]
    start = np.flatnonzero(np.diff(s, prepend=-1) > 0)
    stay  = np.append(h[::-1].cumsum()[::-1], 0)[np.append(start, len(s))]
    return s[start],stay,np.append(len(s)-start, 0)

def _f_beta(tp, kept, n, beta):
    return (1+beta**2)*tp/(beta**2*n + kept) if n else np.full(len(tp), np.nan)

@checked(iou=IOU, label=TEXT)
def detection_curve(
    annotations,   # list[Annotation], the truth
    predictions,   # list[Annotation] of the same pictures
    label=None,    # name of a class; None = all detections of all classes together (micro)
    iou:float=.5,  # in (0, 1]: the least overlap of a hit
    beta:float=1., # how many times recall weighs more than precision
    vocab=None,    # list of names
) -> pd.DataFrame: # a row for each distinct score, rising: score, precision, recall, fbeta
    """Precision, recall and F-beta of the detections with that score or a higher one, matched as in `match_detections`.
    Without truth recall and F-beta are nan"""
    o = _counted(annotations, predictions, iou, vocab)
    if label is not None and label not in o.vocab:
        raise ValueError(f"no class {label!r}{nearest(label, o.vocab)}; there are {', '.join(o.vocab)}")
    scores,hit,n = o.of(None if label is None else o.vocab.index(label))
    s,tp,kept = _cuts(scores, hit)
    tp,kept = tp[:-1],kept[:-1]
    recall = tp/n if n else np.full(len(tp), np.nan)
    return pd.DataFrame(dict(score=s, precision=tp/kept, recall=recall, fbeta=_f_beta(tp, kept, n, beta)))

@checked(iou=IOU)
def best_detection_threshold(
    annotations,     # list[Annotation], the truth
    predictions,     # list[Annotation] of the same pictures, all detections, those of low scores too
    iou:float=.5,    # in (0, 1]: the least overlap of a hit
    beta:float=1.,   # how many times recall weighs more than precision
    per_class=False, # one threshold for each class, or one for all detections together (micro)
    vocab=None,      # list of names
):                   # (threshold, F-beta), floats; or both (c,) float32, in the order of the vocab without NO_OBJECT
    """The threshold that maximises F-beta under the rule `score > thresh`, and the value reached there, matched as in
    `match_detections`. Exact: every distinct score is a candidate, and the threshold lies midway between two (or is the
    lower one, if no float32 lies between). Below the lowest all stay: half of it, or a small negative number if it is
    0. Above the highest none: midway to 1. Of equally good cuts the one nearest .5. A class without truth gets .5 and
    the value nan; one whose truth is never found gets the value 0"""
    o = _counted(annotations, predictions, iou, vocab)
    if not per_class: return tuple(map(float, _best_cut(*o.of(), beta)))
    best = np.array([_best_cut(*o.of(c), beta) for c in range(len(o.vocab))], np.float32).reshape(-1, 2)
    return best[:,0],best[:,1]

def _best_cut(scores, hit, n, beta):
    s,tp,kept = _cuts(scores, hit)
    f = _f_beta(tp, kept, n, beta)
    if not n: return .5,np.nan
    upper = np.append(s, np.float32(1))
    lower = np.append(np.float32(0 if upper[0] > 0 else -2.**-9), s)   # half of this predicts all where the lowest is 0
    best  = np.flatnonzero(f == f.max())
    i     = best[np.abs(lower+upper-1)[best].argmin()]
    mid   = (lower[i]+upper[i])/2
    return mid if mid < upper[i] else lower[i],f[i]

@checked(iou=IOU)
def detection_confusion(
    annotations,  # list[Annotation], the truth
    predictions,  # list[Annotation] of the same pictures
    vocab=None,   # list of names
    iou:float=.5, # in (0, 1]: the least overlap of a pair
    thresh=.5,    # what a score must exceed: a number, or one for each class
) -> pd.DataFrame:# (c+1, c+1) counts, row = truth, column = answer; NO_OBJECT is last: its row holds what is false, its
                  # column what was missed
    """What was taken for what. Detections above `thresh` are matched by COCO's rule with classes left aside (its
    `useCats=0`): the highest score first, each takes the truth that is left with the highest IoU, whatever its class.
    Truth with `ignore` counts nowhere, nor what is found only there; that nothing is nothing is not counted.
    `plot_confusion` draws it"""
    vocab,truth,dets = _read(annotations, predictions, vocab)
    on   = dets.scores > np.broadcast_to(check_thresh(thresh, len(vocab)), len(vocab))[dets.label]
    dets = _Objects(*(o[on] for o in dets))
    found  = _match(truth, dets, iou, within_class=False)
    hit,ignored = _verdicts(found, truth)
    n,counts = len(vocab),np.zeros((len(vocab)+1,)*2, int)
    missed = ~truth.ignore
    missed[found[hit]] = False
    np.add.at(counts, (np.append(truth.label, n)[np.where(hit, found, -1)][~ignored], dets.label[~ignored]), 1)
    np.add.at(counts, (truth.label[missed], n), 1)
    return pd.DataFrame(counts, index=[*vocab, NO_OBJECT], columns=[*vocab, NO_OBJECT])

# --- plots

_NAMED = 20   # curves that have names and colours of their own

def _plot(o, draw, ax, title, legend):
    """Let `draw(ax, scores, hit, n, **style)` return a line and what the legend says of it: of each class of `o` with
    ground truth, and, in black, of all together. The legend is to the right of the axes, where it covers no curve"""
    import matplotlib.pyplot as plt
    if ax is None: ax = plt.subplots(figsize=(7.6, 4.5), layout='constrained')[1]
    some = np.flatnonzero(o.n)
    named,colours = len(some) <= _NAMED,class_colours(o.vocab)
    for i,c in enumerate(some):
        style = dict(color=colours[str(o.vocab[c])], lw=1.4) if named else dict(color='#b0b0b0', lw=.7)
        line,value = draw(ax, *o.of(c), **style)
        line.set_label(f'{o.vocab[c]}, {value}' if named else '_' if i else f'Each of {len(some)} classes')
    if len(some) > 1:
        line,value = draw(ax, *o.of(), color='black', lw=2.2)
        line.set_label(f'All together, {value}')
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    ax.set_title(title, loc='left')
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=.25)
    if len(some): ax.legend(loc='upper left', bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, fontsize=8,
                            title=legend, title_fontsize=8, alignment='left')
    return ax

@checked(iou=IOU)
def plot_precision_recall(
    annotations,  # list[Annotation], the ground truth
    predictions,  # list[Annotation] of the same images
    vocab=None,   # list of class names
    iou:float=.5, # in (0, 1]: the least overlap of a hit
    ax=None,      # matplotlib axes, of a figure with layout='constrained', since the legend is beside them; None makes
                  # a figure
):                # the axes
    """Precision against recall of each class that has ground truth, as in `detection_curve`, and of all detections
    together (micro), with the area below the interpolated curve; more than 20 classes have no names"""
    def draw(ax, scores, hit, n, **style):
        _,tp,kept = (o[::-1] for o in _cuts(scores, hit))
        recall,precision = tp[1:]/n,tp[1:]/kept[1:]   # without the cut that keeps nothing
        x,y = np.append(0, recall),np.append(precision[:1], precision)
        return ax.plot(x[:len(y)], y, **style)[0],f'{_area_below(recall, precision):.3f}'
    ax = _plot(_counted(annotations, predictions, iou, vocab), draw, ax, f'Precision by recall, IoU {iou:g}',
               'Area below')
    ax.set(xlabel='Recall', ylabel='Precision')
    return ax

@checked(iou=IOU)
def plot_f_threshold(
    annotations,   # list[Annotation], the ground truth
    predictions,   # list[Annotation] of the same images
    vocab=None,    # list of class names
    iou:float=.5,  # in (0, 1]: the least overlap of a hit
    beta:float=1., # how many times recall weighs more than precision
    ax=None,       # matplotlib axes, of a figure with layout='constrained', since the legend is beside them; None makes
                   # a figure
):                 # the axes
    """F-beta against the threshold of each class that has ground truth, and of all detections together (micro), with
    the best threshold as a dot; more than 20 classes have no names"""
    def draw(ax, scores, hit, n, color, lw):
        s,tp,kept = _cuts(scores, hit)
        f = _f_beta(tp, kept, n, beta)
        thresh,best = _best_cut(scores, hit, n, beta)
        ax.plot(thresh, best, 'o', color=color, ms=5+lw, mec='white', zorder=5, clip_on=False)
        line, = ax.plot(np.r_[0, s, 1], np.append(f, f[-1]), drawstyle='steps-post', color=color, lw=lw)
        return line,f'{best:.3f} at {thresh:.3f}'
    ax = _plot(_counted(annotations, predictions, iou, vocab), draw, ax, f'F{beta:g} by threshold, IoU {iou:g}', 'Best')
    ax.set(xlabel='Threshold', ylabel=f'F{beta:g}')
    return ax

# --- while a model learns

class MeanAP(Metric):
    """COCO's mean AP, as `coco_ap` has it, of all pictures of the validation set in pixels of their files, over all
    detections that the model gives: no threshold but 0"""
    @checked(every=COUNT, iou_type=_IOU_TYPE)
    def __init__(self,
        every:int=1,        # epochs from one value to the next, since it takes time; nan in those between, for which
                            # fastai's trackers wait: their `patience` counts values. The last epoch of a fit has a
                            # value, and so has every `validate`
        iou_type='bbox',    # 'bbox' or 'segm'
        max_dets:int=100,   # that count, of a picture and a class
    ):
        self.every,self.iou_type,self.max_dets = every,iou_type,max_dets
    @property
    def name(self): return 'map' if self.iou_type == 'bbox' else f'map_{self.iou_type}'
    def reset(self): self.annotations,self.predictions,self.vocab = [],[],None
    def due(self, learn) -> bool:
        "Whether this epoch of `learn` has a value"
        # `validate` is known by the bar of epochs that it turns off; its epoch is that of some fit before
        return not learn.create_mbar or (learn.epoch+1)%self.every == 0 or learn.epoch == learn.n_epoch-1
    def accumulate(self, learn):
        if not self.due(learn): return
        dets  = learn.probabilities(to_detach(learn.pred, cpu=False, gather=False))
        if self.iou_type == 'bbox': dets = dets[...,:6]   # without masks, which would be pasted in vain
        items = learn.items_of_batch(len(self.annotations), len(dets))
        self.annotations += items
        self.predictions += learn.to_annotations(dets, [(a.path, a.size) for a in items], 0.)
        self.vocab = tuple(learn.dls.vocab)   # a list would be what several processes join
    @property
    def value(self):
        if not self.annotations: return float('nan')
        return coco_ap(self.annotations, self.predictions, self.vocab, self.iou_type, self.max_dets)['map']
