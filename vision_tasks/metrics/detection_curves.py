"Precision, recall, F-beta and the confusion matrix of detections at one IoU"
from __future__ import annotations
from typing import NamedTuple
import numpy as np, pandas as pd
from ..arguments import IOU, TEXT, check_thresh, checked, nearest
from ..data.targets import NO_OBJECT
from .matching import ObjectTable, match_coco, read_objects, verdicts

__all__ = ['detection_curve', 'best_detection_threshold', 'detection_confusion']

class _Counted(NamedTuple):
    "The detections that are not ignored"
    vocab:list
    n:np.ndarray      # (c,) objects of each class
    label:np.ndarray  # (k,) index into the vocab
    scores:np.ndarray # (k,) float32
    hit:np.ndarray    # (k,) bool
    def of(self, c=None):
        "Scores, hits and number of objects of class `c`; None: of all classes together"
        on = slice(None) if c is None else self.label == c
        return self.scores[on],self.hit[on],self.n.sum() if c is None else self.n[c]

def counted_detections(annotations, predictions, iou, vocab):
    "The scores and true positives of each class, without ignored detections"
    vocab,truth,dets = read_objects(annotations, predictions, vocab)
    hit,ignored = verdicts(match_coco(truth, dets, iou), truth)
    n = np.bincount(truth.label[~truth.ignore], minlength=len(vocab))
    return _Counted(vocab, n, *(o[~ignored] for o in (dets.label, dets.scores, hit)))

def cuts_of_scores(scores, hit):
    "The distinct scores, ascending (m,); hits and detections (m+1,) at or above each of them, and above all of them"
    order = np.argsort(scores)
    s,h   = scores[order],hit[order]
    start = np.flatnonzero(np.diff(s, prepend=-1) > 0)
    stay  = np.append(h[::-1].cumsum()[::-1], 0)[np.append(start, len(s))]
    return s[start],stay,np.append(len(s)-start, 0)

def f_beta_of_cuts(tp, kept, n, beta):
    "F-beta at each cut from true positives and kept detections; nan without ground truth"
    return (1+beta**2)*tp/(beta**2*n + kept) if n else np.full(len(tp), np.nan)

@checked(iou=IOU, label=TEXT)
def detection_curve(
    annotations,   # list[Annotation], the ground truth
    predictions,   # list[Annotation] of the same images in the same order
    label=None,    # a class name; None (default): all detections of all classes together (micro)
    iou:float=.5,  # least IoU of a true positive, in (0, 1]
    beta:float=1., # weight of recall over precision, above 0
    vocab=None,    # list of class names; None (default): those of `annotations`, sorted
) -> pd.DataFrame: # a row for each distinct score, ascending: score, precision, recall, fbeta
    """Precision, recall and F-beta of the detections with that score or a higher one, matched as in `match_detections`.
    Recall and F-beta are nan without ground truth. Raises `ValueError` for an unknown `label`"""
    o = counted_detections(annotations, predictions, iou, vocab)
    if label is not None and label not in o.vocab:
        raise ValueError(f"no class {label!r}{nearest(label, o.vocab)}; there are {', '.join(o.vocab)}")
    scores,hit,n = o.of(None if label is None else o.vocab.index(label))
    s,tp,kept = cuts_of_scores(scores, hit)
    tp,kept = tp[:-1],kept[:-1]
    recall = tp/n if n else np.full(len(tp), np.nan)
    return pd.DataFrame(dict(score=s, precision=tp/kept, recall=recall, fbeta=f_beta_of_cuts(tp, kept, n, beta)))

@checked(iou=IOU)
def best_detection_threshold(
    annotations,     # list[Annotation], the ground truth
    predictions,     # list[Annotation] of the same images in the same order, with the detections of low scores too
    iou:float=.5,    # least IoU of a true positive, in (0, 1]
    beta:float=1.,   # weight of recall over precision, above 0
    per_class=False, # one threshold for each class, or one for all detections together (micro)
    vocab=None,      # list of class names; None (default): those of `annotations`, sorted
):                   # (threshold, F-beta): floats, or (c,) float32 in the order of the vocab without `NO_OBJECT`
    """The threshold that maximizes F-beta under the rule `score > thresh`, and the F-beta there, matched as in
    `match_detections`. It is exact: every distinct score is a candidate, and the threshold is midway between two scores
    (or the lower one, if no float32 lies between). To keep all detections it is half the lowest score, or a small
    negative number if that is 0; to keep none, midway from the highest score to 1. Of ties, the one nearest 0.5.
    A class without ground truth gets 0.5 and the value nan; one that is never detected gets the value 0"""
    o = counted_detections(annotations, predictions, iou, vocab)
    if not per_class: return tuple(map(float, best_cut(*o.of(), beta)))
    best = np.array([best_cut(*o.of(c), beta) for c in range(len(o.vocab))], np.float32).reshape(-1, 2)
    return best[:,0],best[:,1]

def best_cut(scores, hit, n, beta):
    "The threshold with the best F-beta, and that value"
    s,tp,kept = cuts_of_scores(scores, hit)
    f = f_beta_of_cuts(tp, kept, n, beta)
    if not n: return .5,np.nan
    upper = np.append(s, np.float32(1))
    # half of -2^-9 keeps all detections if the lowest score is 0
    lower = np.append(np.float32(0 if upper[0] > 0 else -2.**-9), s)
    best  = np.flatnonzero(f == f.max())
    i     = best[np.abs(lower+upper-1)[best].argmin()]
    mid   = (lower[i]+upper[i])/2
    return mid if mid < upper[i] else lower[i],f[i]

@checked(iou=IOU)
def detection_confusion(
    annotations,  # list[Annotation], the ground truth
    predictions,  # list[Annotation] of the same images in the same order
    vocab=None,   # list of class names; None (default): those of `annotations`, sorted
    iou:float=.5, # least IoU of a pair, in (0, 1]
    thresh=.5,    # detections with a score above it are used: a number in [0, 1], or one per class
) -> pd.DataFrame:# (c+1, c+1) counts, row = ground truth, column = prediction; the last row, `NO_OBJECT`, holds false
                  # positives without an object, the last column missed objects
    """Confusion matrix of detections. Those above `thresh` are matched by COCO's rule without regard to class (its
    `useCats=0`): by descending score, each takes the unmatched object with the highest IoU. Objects with `ignore` and
    detections that match only these are excluded; there are no true negatives. `plot_confusion` draws it"""
    vocab,truth,dets = read_objects(annotations, predictions, vocab)
    on   = dets.scores > np.broadcast_to(check_thresh(thresh, len(vocab)), len(vocab))[dets.label]
    dets = ObjectTable(*(o[on] for o in dets))
    found  = match_coco(truth, dets, iou, within_class=False)
    hit,ignored = verdicts(found, truth)
    n,counts = len(vocab),np.zeros((len(vocab)+1,)*2, int)
    missed = ~truth.ignore
    missed[found[hit]] = False
    np.add.at(counts, (np.append(truth.label, n)[np.where(hit, found, -1)][~ignored], dets.label[~ignored]), 1)
    np.add.at(counts, (truth.label[missed], n), 1)
    return pd.DataFrame(counts, index=[*vocab, NO_OBJECT], columns=[*vocab, NO_OBJECT])
