"Precision, recall, F-beta and the confusion matrix of detections at one IoU"
from __future__ import annotations
from typing import NamedTuple
import numpy as np, pandas as pd
from ..arguments import IOU, TEXT, check_thresh, checked, nearest
from ..data.targets import NO_OBJECT
from .matching import ObjectTable, match_coco, read_objects, verdicts

__all__ = ['detection_curve', 'best_detection_threshold', 'detection_confusion']

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

def counted_detections(annotations, predictions, iou, vocab):
    vocab,truth,dets = read_objects(annotations, predictions, vocab)
    hit,ignored = verdicts(match_coco(truth, dets, iou), truth)
    n = np.bincount(truth.label[~truth.ignore], minlength=len(vocab))
    return _Counted(vocab, n, *(o[~ignored] for o in (dets.label, dets.scores, hit)))

def cuts_of_scores(scores, hit):
    "The distinct scores, rising (m,); hits and detections (m+1,) that stay from each of them on, and above all of them"
    order = np.argsort(scores)
    s,h   = scores[order],hit[order]
    start = np.flatnonzero(np.diff(s, prepend=-1) > 0)
    stay  = np.append(h[::-1].cumsum()[::-1], 0)[np.append(start, len(s))]
    return s[start],stay,np.append(len(s)-start, 0)

def f_beta_of_cuts(tp, kept, n, beta):
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
    o = counted_detections(annotations, predictions, iou, vocab)
    if not per_class: return tuple(map(float, best_cut(*o.of(), beta)))
    best = np.array([best_cut(*o.of(c), beta) for c in range(len(o.vocab))], np.float32).reshape(-1, 2)
    return best[:,0],best[:,1]

def best_cut(scores, hit, n, beta):
    s,tp,kept = cuts_of_scores(scores, hit)
    f = f_beta_of_cuts(tp, kept, n, beta)
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
