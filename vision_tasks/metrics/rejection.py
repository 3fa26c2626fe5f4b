"""The threshold below which a classifier of one class per image predicts nothing, exactly: every distinct confidence is
a candidate. With it come the risk-coverage curve and its scores (El-Yaniv and Wiener, 2010, JMLR 11)"""
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
import pandas as pd
from ..arguments import BETA, Kind, checked, choice, is_number
from ..warning import warn
from .classes import IDS, PROBS
from .threshold_scores import UNIT, as_numpy, float32_like, round_up_float32
from .thresholds import midway

__all__ = ['best_rejection', 'coverage_curve']

SCORES = 'f1','fbeta','coverage_at_accuracy','accuracy_at_coverage'
_AT = Kind("a number above 0, at most 1, such as 0.9", lambda o: is_number(o) and 0 < o <= 1)

@dataclass(frozen=True)
class _Score:
    "What is maximised, as a function of counts: (k,) correct and accepted, and how many there are in all"
    name:str
    beta:float
    at:float

    def __call__(self, tp, accepted, n, total):   # n: of the class, or of all; total: images that may be accepted
        if self.name in ('f1', 'fbeta'):
            b2 = self.beta**2
            return (1+b2)*tp/np.maximum(b2*n + accepted, 1)
        coverage,accuracy = accepted/max(total, 1),tp/np.maximum(accepted, 1)
        # to accept nothing breaks no promise of accuracy
        if self.name == 'coverage_at_accuracy': return np.where((accuracy >= self.at) | (accepted == 0), coverage, -1.)
        return np.where(coverage >= self.at, accuracy, -1.)

def _read(probs, targs):
    "(n,) confidence in float32, rounded up; (n,) predicted ids; (n,) true ids; c"
    p,t = as_numpy(probs),as_numpy(targs)
    if len(p) != len(t): raise ValueError(f"probs are (n, c) and targs (n,); got {p.shape} and {t.shape}")
    if not p.size: raise ValueError(f"probs is empty, shape {p.shape}; at least one image is needed")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probs reach from {p.min():.4g} to {p.max():.4g}, expected probabilities in [0, 1] (apply "
                         "`softmax` to logits; nan is of a model that diverged)")
    if t.min() < 0 or t.max() >= p.shape[1]:
        raise ValueError(f"targs holds ids from {t.min()} to {t.max()}; expected 0 to {p.shape[1]-1}")
    conf,pred = p.max(1),p.argmax(1)
    if not conf.all(): raise ValueError(f"row {conf.argmin()} of probs is 0 everywhere; expected the probabilities of "
                                        "a softmax")
    return round_up_float32(conf),pred,t.astype(np.int64),p.shape[1]

def _cuts(conf, right):
    """The ways to accept the most confident: (k,) how many of them, from none to all, and of these correct; (k,)
    confidences below and above each cut. Equal confidences are accepted together"""
    order = np.argsort(-conf, kind='stable')
    s,hits = conf[order],np.r_[0, np.cumsum(right[order])]
    n = np.r_[0, np.flatnonzero(np.r_[s[1:] != s[:-1], True][:len(s)]) + 1]
    upper = np.r_[np.float32(1), s][n]
    return n,hits[n],np.r_[s, np.float32(0)][n],upper

def _threshold(lower, upper, probs): return 0. if lower == 0 else float(midway(lower, upper, probs))   # 0: accept all

def _best(v, lower, upper, probs):
    "(threshold, value): the best of the cuts, of several the one that rejects the fewest"
    i = np.flatnonzero(v == v.max())[-1]
    return _threshold(lower[i], upper[i], probs),float(v[i])

def _macro(n, conf, pred, targ, c, score): # n: (k,) accepted images of each cut, as `_cuts` returns them
    "(k,) value of each cut, the mean over the classes of `targ`, in fixed-point numbers"
    pos,gain = np.bincount(targ, minlength=c),np.zeros(len(conf) + 1, np.int64)
    rank = np.argsort(np.argsort(-conf, kind='stable'), kind='stable') + 1   # place of each image
    for k in np.flatnonzero(pos):
        mine = np.flatnonzero(pred == k)
        mine = mine[np.argsort(rank[mine])]
        v = score(np.r_[0, np.cumsum(targ[mine] == k)], np.arange(len(mine) + 1), pos[k], 0)
        gain[rank[mine]] = np.diff(np.rint(v*UNIT).astype(np.int64))   # an image changes the F of one class only
    return np.cumsum(gain)[n]/UNIT/(pos > 0).sum()

@checked(probs=PROBS, targs=IDS, score=choice(*SCORES), beta=BETA, at=_AT, average=choice('macro', 'micro'))
def best_rejection(
    probs,                # (n, c) of a softmax, Tensor or array
    targs,                # (n,) true class ids
    score:str='f1',       # 'f1', 'fbeta', 'coverage_at_accuracy' or 'accuracy_at_coverage'
    per_class:bool=False, # one threshold for each predicted class, or one for all
    beta:float=1.,        # for 'fbeta': how many times recall weighs more than precision; below 1 more is rejected
    at:float=None,        # for the last two: the lowest accuracy of what is accepted, or the lowest share that is, in
                          #   (0, 1]
    average:str='macro',  # of 'f1' and 'fbeta' with one threshold: the mean over the classes of `targs`, or 'micro': of
                          #   the pooled counts
    vocab=None,           # list of the class names, for the warning
) -> tuple:               # (threshold, value), floats, or (c,) float32 as `probs`
    """The threshold of rejection that maximises `score`, and the value that it reaches. An image is accepted where the
    highest of its probabilities exceeds the threshold; a rejected one is no prediction.

    'coverage_at_accuracy' accepts as many images as it can such that at least `at` of them are correct;
    'accuracy_at_coverage' is as accurate as it can be with at least `at` of the images. With `per_class` these shares
    are of the images that are predicted to be of the class; where there are none, and for the F of a class without
    ground truth, the threshold is 0 and the value nan.

    Exact, not a grid: every distinct confidence is a candidate, and the threshold lies midway between two, or is 0
    where nothing is rejected. Among equally good ones the lowest is taken. Warns where everything is rejected"""
    if ('_at_' in score) != (at is not None):
        raise ValueError(f"score {score!r} needs `at`, such as at=.9" if at is None else
                         f"at={at} has no meaning for score {score!r}; use 'coverage_at_accuracy'")
    if beta != 1 and score != 'fbeta': raise ValueError(f"beta={beta} has no meaning for score {score!r}; use 'fbeta'")
    conf,pred,targ,c = _read(probs, targs)
    if vocab is not None and len(vocab) != c: raise ValueError(f"vocab has {len(vocab)} names for {c} classes")
    f = _Score(score, beta, at)
    if not per_class:
        n,tp,lower,upper = _cuts(conf, pred == targ)
        macro = '_at_' not in score and average == 'macro'
        v = _macro(n, conf, pred, targ, c, f) if macro else f(tp, n, len(targ), len(targ))
        res = _best(v, lower, upper, probs)
        if not (conf > res[0]).any(): _warn_rejected(at, [], f" (at most {(tp[1:]/n[1:]).max():.3g})")
        return res
    (thresh,value),silent = _best_of_each(conf, pred, targ, c, f, probs)
    if silent: _warn_rejected(at, [vocab[k] if vocab is not None else k for k in silent])
    return float32_like(thresh, probs),float32_like(value, probs)

def _best_of_each(conf, pred, targ, c, score, probs):
    "(c,) thresholds and values, and the classes of which everything is rejected"
    rows,silent = [],[]
    for k in range(c):
        on = pred == k
        n,tp,lower,upper = _cuts(conf[on], targ[on] == k)
        nothing = not on.any() if '_at_' in score.name else not (targ == k).any()
        rows.append((0., np.nan) if nothing else _best(score(tp, n, (targ == k).sum(), on.sum()), lower, upper, probs))
        if on.any() and not (conf[on] > rows[-1][0]).any(): silent.append(k)
    return zip(*rows),silent

def _warn_rejected(at, classes, most=''):
    "Warn that no threshold is accurate enough, for all images or those predicted to be of `classes`"
    where = f" for the classes {', '.join(map(repr, classes[:20]))}{', ...' if len(classes) > 20 else ''}"
    warn(f"no threshold reaches an accuracy of {at:g}{where if classes else most}. With the threshold that is returned "
         f"{'they are never predicted' if classes else 'all images are rejected'}; lower `at`")

@checked(probs=PROBS, targs=IDS)
def coverage_curve(
    probs,         # (n, c) of a softmax, Tensor or array
    targs,         # (n,) true class ids
) -> pd.DataFrame: # a row for each distinct confidence, from the highest: thresh, coverage, accuracy (of the accepted)
    "What accuracy the accepted images have for each share of them: the risk-coverage curve, with 1 - risk"
    conf,pred,targ,_ = _read(probs, targs)
    n,tp,lower,upper = (o[1:] for o in _cuts(conf, pred == targ))
    thresh = np.where(lower == 0, 0, midway(lower, upper, probs))
    return pd.DataFrame(dict(thresh=thresh, coverage=n/len(targ), accuracy=tp/n))
