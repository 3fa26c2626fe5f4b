"Calibration: turning scores into probabilities, and measuring how far they are from that"
from __future__ import annotations
from statistics import NormalDist
import numpy as np, pandas as pd
from ..arguments import checked, numbers
from .threshold_scores import (MAX_TEMPERATURE, SCORE_ARRAY, TARGET_ARRAY, as_numpy, cast_as, float32_like,
                               read_scores)

__all__ = ['fit_temperature', 'fit_softmax_temperature', 'reliability', 'calibration_error', 'wilson_interval']

@checked(logits=SCORE_ARRAY, targs=TARGET_ARRAY)
def fit_temperature(
    logits,               # (n, c) or (n,) before the sigmoid, tensor or array
    targs,                # same shape, 0 or 1
    per_class:bool=False, # one temperature for each class, or one for all
):                        # float, or (c,) float32 as `logits`
    """The T > 0 for which `sigmoid(logits/T)` has the least cross-entropy (Guo et al., 2017, arXiv:1706.04599).

    T is in [1/20, 20]: at the lower bound where the sign of the logits predicts every target, at the upper bound where
    the logits carry no information. It is 1 where all targets are 0, or all are 1"""
    z,t = read_scores(logits, targs, logits=True)
    if not per_class: return _temperature(z.ravel(), t.ravel())
    return float32_like([_temperature(z[:,i], t[:,i]) for i in range(z.shape[1])], logits)

def _temperature(z, t):
    "The best T for logits `z` (n,) and targets `t` (n,)"
    if t.all() or not t.any(): return 1.
    z = z.astype(np.float64)
    def slopes(a): # tanh, since exp overflows
        s = .5 + .5*np.tanh(a/2*z)
        return z @ (s-t),(z*z) @ (s*(1-s))
    return _least(slopes)

def _least(slopes):
    "The T = 1/a within its bounds that has the least loss, given a -> first and second derivative of that"
    low,high,a = 1/MAX_TEMPERATURE,MAX_TEMPERATURE,1. # of a, in which the loss is convex
    if slopes(low)[0]  >= 0: return 1/low
    if slopes(high)[0] <= 0: return 1/high
    while high-low > 1e-12*a: # Newton's step, or half the bracket where that leaves it
        d,dd = slopes(a)
        if d > 0: high = a
        else:     low  = a
        new = a - d/dd if dd > 0 else low
        if not low < new < high: new = (low+high)/2
        if abs(new-a) < 1e-9*a: return float(1/new)
        a = new
    return float(1/a)

@checked(logits=numbers((None, None), what="logits (n, c) as an array or a tensor", types='f'),
         targs=numbers((None,), what="(n,) class ids, whole numbers", types='iu'))
def fit_softmax_temperature(
    logits, # (n, c) before the softmax, Tensor or array
    targs,  # (n,) true class ids
) -> float: # in [1/20, 20]
    """The T > 0 for which `softmax(logits/T)` has the least cross-entropy (Guo et al., 2017, arXiv:1706.04599). It is
    a bound where the data pull beyond it: low where the largest logit is always that of the true class, high where
    logits tell nothing"""
    z,t = as_numpy(logits).astype(np.float64),as_numpy(targs)
    if not z.size or len(z) != len(t):
        raise ValueError(f"logits are (n, c) and targs (n,), of one image or more; got {z.shape} and {t.shape}")
    if not np.isfinite(z).all():
        raise ValueError(f"{(~np.isfinite(z)).sum()} of {z.size} logits are not finite; look for a diverged model")
    if t.min() < 0 or t.max() >= z.shape[1]:
        raise ValueError(f"targs holds ids from {t.min()} to {t.max()}; expected 0 to {z.shape[1]-1}")
    z = z - z[np.arange(len(t)),t][:,None]   # the true class' is 0, so that the loss of an image is logsumexp(a z)
    if (z == 0).all(): return 1.             # nothing depends on T
    def slopes(a):
        e = np.exp(a*(z - z.max(1, keepdims=True)))
        p = e/e.sum(1, keepdims=True)
        mean = (p*z).sum(1)
        return mean.sum(),((p*z*z).sum(1) - mean**2).sum()
    return _least(slopes)

@checked(probs=SCORE_ARRAY, targs=TARGET_ARRAY)
def reliability(
    probs,          # (n, c) or (n,) in [0, 1]
    targs,          # same shape, 0 or 1
    n_bins:int=10,  # of equal width, (low, high]; the first includes 0
) -> pd.DataFrame:  # a row for each bin: low, high, n, score (mean), positive (share); the last two are nan if n is 0
    "Mean score and share of positives in each bin of scores, over all entries of all classes together"
    p,t   = (o.ravel() for o in read_scores(probs, targs))
    edges = np.linspace(0, 1, n_bins+1)
    bins  = np.searchsorted(cast_as(edges[1:-1], probs), p)
    n,score,positive = (np.bincount(bins, w, n_bins) for w in (None, p, t))
    some  = np.where(n > 0, n, np.nan)
    return pd.DataFrame(dict(low=edges[:-1], high=edges[1:], n=n, score=score/some, positive=positive/some))

@checked(probs=SCORE_ARRAY, targs=TARGET_ARRAY)
def calibration_error(
    probs,         # (n, c) or (n,) in [0, 1]
    targs,         # same shape, 0 or 1
    n_bins:int=10, # of equal width
) -> float:        # in [0, 1]
    """The expected calibration error: the mean distance of score and share of positives in a bin, weighted by entries.

    Guo et al., 2017, arXiv:1706.04599, eq. 3, for binary predictions: the score is the confidence that the label is
    present, even below 0.5"""
    return error_of_bins(reliability(probs, targs, n_bins))

def error_of_bins(bins):
    "Mean distance of score and share of positives over the `bins`, weighted by their entries"
    return float(((bins.score-bins.positive).abs()*bins.n).sum()/bins.n.sum())

@checked(hits=numbers(what="a number, or several", types='iuf', lo=0),
         n=numbers(what="a number, or several", types='iuf', lo=0, hi=10**15))
def wilson_interval(
    hits,          # (k,) or a number: successes
    n,             # same shape: trials
    ci:float=.95,  # confidence level, in (0, 1)
) -> tuple:        # (low, high), each of the shape of `hits`, in [0, 1]; nan where n is 0
    "Confidence interval of a share of independent trials (Wilson, 1927); unlike the normal one it stays in [0, 1]"
    hits,n = np.asarray(hits, float),np.asarray(n, float)
    if n.ndim and hits.ndim and hits.shape != n.shape:
        raise ValueError(f"hits and n: expected one shape, got {hits.shape} and {n.shape}")
    if (hits > n).any(): raise ValueError(f"hits: expected at most n, got {hits} of {n}")
    z2 = NormalDist().inv_cdf(.5 + ci/2)**2
    n  = np.where(n > 0, n, np.nan)
    p,share = hits/n,1/(1 + z2/n)
    mid,half = share*(p + z2/(2*n)),share*np.sqrt(z2*(p*(1-p)/n + z2/(4*n*n)))
    return (mid-half).clip(0, 1),(mid+half).clip(0, 1)
