"Where scores become decisions: the exact threshold, its curve, its uncertainty, and scores that mean what they say"
from __future__ import annotations
from dataclasses import dataclass
from statistics import NormalDist
import numpy as np, pandas as pd
from torch import Tensor, as_tensor, bfloat16
from .arguments import BETA, Kind, brief, checked, choice, is_number, numbers, several, whole
from .warning import warn

__all__ = ['best_threshold', 'sweep_thresholds', 'plot_thresholds', 'bootstrap_threshold', 'out_of_fold_threshold',
           'fit_temperature', 'reliability', 'calibration_error', 'wilson_interval', 'plot_reliability']

SCORES = ('f1', 'fbeta', 'accuracy', 'jaccard', 'recall_at_precision', 'precision_at_recall') # what can be maximised
CURVES = ('f1', 'fbeta', 'accuracy', 'jaccard', 'precision', 'recall')                        # what can be swept
_BELOW = -2.**-10 # predicts all where the lowest score is 0; a power of two, so that half precision keeps it
_UNIT  = 2.**44   # of the fixed-point scores of a macro mean: sums are exact, with room for 2**19 classes
_T_MAX = 20.      # a temperature stays within [1/20, 20]; those of Guo et al. lie between 1 and 5

# ---- what comes in

def _numpy(x):
    "`x` on the CPU as numpy; half precision becomes float32, which holds it exactly"
    if isinstance(x, Tensor):
        x = x.detach().as_subclass(Tensor).cpu()
        x = (x.float() if x.dtype == bfloat16 else x).numpy()
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype == np.float16 else x

def _where(bad):
    "How many of `bad` (n, c) are true, and the first of them, in words"
    row,col = np.unravel_index(bad.argmax(), bad.shape)
    return f"{bad.sum()} of {bad.size}, the first in row {row}, class {col}"

def _read(probs, targs, logits=False):
    "`probs` (n, c) in float32 or float64 and `targs` (n, c) in bool, checked"
    p,t = _numpy(probs),_numpy(targs)
    name = 'logits' if logits else 'probs'
    if p.shape != t.shape:
        raise ValueError(f"{name} has shape {p.shape} but targs {t.shape}; both are (n, c) or both (n,), "
                         "targs one-hot encoded")
    if p.ndim not in (1, 2): raise ValueError(f"{name} has shape {p.shape}, expected (n, c) or (n,)")
    if not p.size: raise ValueError(f"{name} is empty, shape {p.shape}; at least one score is needed")
    if p.dtype.kind != 'f': raise ValueError(f"{name} has type {p.dtype}, expected floating point numbers")
    p,t = (o.reshape(len(o), -1) for o in (p, t))
    low,high = p.min(),p.max() # nan, if any score is
    if np.isnan(low):
        raise ValueError(f"nan in {name}: {_where(np.isnan(p))}; look for a diverged model or a broken input")
    if logits and np.isinf([low, high]).any():
        raise ValueError(f"infinite logits: {_where(np.isinf(p))}; expected finite numbers")
    if not logits and (low < 0 or high > 1):
        raise ValueError(f"probs reach from {low:.4g} to {high:.4g}: {_where((p < 0) | (p > 1))}; "
                         "pass probabilities in [0, 1], not logits (apply `sigmoid` first)")
    if t.dtype != bool:
        bad = (t != 0) & (t != 1)
        if bad.any():
            raise ValueError(f"targs other than 0 and 1: {_where(bad)}, is {t[bad][0]}; "
                             "expected one-hot encoded targets")
        t = t.astype(bool)
    return p,t

def _cast(x, probs):
    "`x` rounded to the type of `probs`, where a comparison of `probs` with a number takes place; as numpy"
    if isinstance(probs, Tensor): return _numpy(as_tensor(x).to(probs.dtype))
    return _numpy(np.asarray(x).astype(np.asarray(probs).dtype))

def _like(x, probs):
    "`x` as float32 of the kind of `probs`: a plain Tensor on its device, or a numpy array"
    x = np.asarray(x, np.float32)
    return as_tensor(x, device=probs.device) if isinstance(probs, Tensor) else x

# ---- what is maximised

def _ratio(a, b): return a/np.maximum(b, 1) # 0 where nothing is divided by nothing: b counts, and is 0 only where a is

@dataclass(frozen=True)
class _Score:
    "The score `name` as a function of counts"
    name:str
    beta:float=1.
    at:float=None

    def __call__(self, tp, pred, pos, n): # true positives, predicted, positive, all
        precision,recall,b2 = _ratio(tp, pred),_ratio(tp, pos),self.beta**2
        if   self.name == 'precision':    v = precision
        elif self.name == 'recall':       v = recall
        elif self.name == 'accuracy':     v = (n - pos - pred + 2*tp)/n
        elif self.name == 'jaccard':      v = _ratio(tp, pos + pred - tp)
        elif self.name in ('f1','fbeta'): v = _ratio((1 + b2)*tp, b2*pos + pred)
        # to predict nothing is no breach of the precision, so that there is always an answer
        elif self.name == 'recall_at_precision': v = np.where((precision >= self.at) | (pred == 0), recall, -1.)
        elif self.name == 'precision_at_recall': v = np.where(recall >= self.at, precision, -1.)
        return np.where(pos > 0, v, np.nan)

    def mean(self, tp, pred, pos, n, macro): # (..., c) counts of each class
        if not macro: return self(tp.sum(-1), pred.sum(-1), pos.sum(-1), n*len(pos))
        have = pos > 0
        return self(tp, pred, pos, n)[...,have].mean(-1) if have.any() else np.full(tp.shape[:-1], np.nan)

_SCORES  = numbers(what="scores (n, c) or (n,) as an array, a tensor or a list")
_TARGS   = numbers(what="0 and 1 as an array, a tensor or a list of the shape of the scores")
_AVERAGE = choice('micro', 'macro')
_AT      = Kind("a number above 0, at most 1, such as 0.9", lambda o: is_number(o) and 0 < o <= 1)

def _score(name, choices, average, beta=1., at=None):
    "The `_Score` that these arguments mean, checked"
    choice(*choices)('score', name); _AVERAGE('average', average); BETA('beta', beta)
    if at is not None: _AT('at', at)
    if beta != 1 and name != 'fbeta': raise ValueError(f"beta={beta} has no meaning for score {name!r}; use 'fbeta'")
    if '_at_' not in name:
        if at is not None:
            raise ValueError(f"at={at} has no meaning for score {name!r}; "
                             "use 'recall_at_precision' or 'precision_at_recall'")
        return _Score(name, beta)
    floor = name.split('_at_')[1]
    if at is None: raise ValueError(f"score {name!r} needs `at`, the lowest {floor} to accept, e.g. at=.9")
    if average == 'macro':
        raise ValueError(f"score {name!r} has no macro average; use average='micro' or per_class=True")
    return _Score(name, at=at)

def _settings(score, per_class, beta=1., at=None, average='micro'):
    "The arguments of `best_threshold` as a checked `_Score`, and whether its mean over the classes is sought"
    macro = average == 'macro' and not per_class
    return _score(score, SCORES, 'micro' if per_class and average == 'macro' else average, beta, at),macro

# ---- the sorted pass

def _up32(p):
    "`p` in float32, rounded up: this changes `p > x` for no float32 number x, which rounding to the nearest does"
    x = p.astype(np.float32, copy=False)
    return x if x is p else np.where(x < p, np.nextafter(x, np.float32(2)), x)

def _keys(p, t):
    "Score and target in one number that sorts as the score: the bits of a float32 in [0, 1], and the target below them"
    keys = np.array(p, order='C').view(np.uint32)
    keys <<= 1 # the sign bit leaves, so that -0 is 0
    keys |= t
    return keys

def _scores(keys): return (keys >> 1).view(np.float32)

def _sorted_keys(p, t, pool):
    "The sorted keys of each class in turn, or of all entries together"
    if pool: keys = _keys(p, t).reshape(1, -1); keys.sort(); yield from keys
    else:
        for i in range(0, p.shape[1], 16): # columns of one cache line at a time: fast to transpose, small to hold
            keys = _keys(p[:,i:i+16].T, t[:,i:i+16].T); keys.sort(); yield from keys

def _first(x): return np.flatnonzero(np.r_[True, x[1:] != x[:-1]]) # index of the first of each run of equals

def _pick(v, start, keys, score):
    "The scores (lower, upper) on both sides of the best of the cuts before `keys[start]`, and its value"
    i = start[v == v.max()]
    lower,upper = _scores(keys[np.maximum(i-1, 0)]),_scores(keys[np.minimum(i, len(keys)-1)])
    upper = np.where(i < len(keys), upper, 1.)
    lower = np.where(i > 0, lower, np.where(upper > 0, 0., 2*_BELOW))
    best  = 0 if score.name == 'precision_at_recall' else np.abs(lower+upper-1).argmin()
    return lower[best],upper[best],v.max()

def _best(keys, score):
    "(lower, upper, value) of the best cut of one class, whose sorted keys are given"
    # to predict one more negative betters no score: only the cuts right below a positive remain, and the one above all
    pos   = np.flatnonzero(keys & 1)
    if not len(pos): return .5,.5,np.nan
    first = _first(keys[pos])
    # negatives of the same score are predicted along
    start = np.r_[np.searchsorted(keys, keys[pos[first]]-1), len(keys)]
    tp    = np.r_[len(pos)-first, 0]
    return _pick(score(tp, len(keys)-start, len(pos), len(keys)), start, keys, score)

def _best_macro(cols, score):
    "(lower, upper, value) of the one cut whose mean over the classes is best; a class without positives takes no part"
    none,keys,steps = [],[],[]
    for k in cols:
        before = np.cumsum(k & 1, dtype=np.int64) - (k & 1)
        pos,n,start = before[-1] + (k[-1] & 1),len(k),_first(k >> 1)
        if not pos: continue
        # of the cut below each score, and of that above all
        v = score(np.r_[pos-before[start], 0], np.r_[n-start, 0], pos, n)
        v = np.rint(v*_UNIT).astype(np.int64)
        none.append(v[-1]); keys.append(k[start]); steps.append(v[:-1]-v[1:])
    if not none: return .5,.5,np.nan
    keys  = np.concatenate(keys) # one at a time, so that the parts go before the next whole comes
    steps = np.concatenate(steps)
    order = np.argsort(keys)
    keys  = keys[order]
    steps = steps[order]
    del order
    start = np.append(_first(keys >> 1), len(keys))
    v = np.append(np.cumsum(steps[::-1])[::-1], 0)[start] + sum(none) # of the cut before keys[start]
    lower,upper,v = _pick(v, start, keys, score)
    return lower,upper,v/_UNIT/len(none)

def _search(cols, score, macro):
    "(m, 3) lower, upper and value of the best cut of each column of sorted keys, or of all of them in the mean"
    return np.array([_best_macro(cols, score)] if macro else [_best(o, score) for o in cols], np.float64)

def _midway(lower, upper, probs):
    "The number between `lower` and `upper`; `lower` where rounding would give `upper`, as the rule is `prob > thresh`"
    mid = _cast((lower+upper)/2, probs).astype(np.float32)
    return np.where(mid < upper, mid, lower).astype(np.float32)

# ---- classes that are never predicted

def _silent(p, t, thresh):
    "(m,) bool: the classes with positives, or all entries together (m = 1), of which `thresh` (m,) predicts none"
    if len(thresh) == 1: p,t = p.reshape(-1, 1),t.reshape(-1, 1)
    return t.any(0) & (p.max(0) <= thresh)

def _highest_precision(p, t):
    "The highest precision of `p > x` for any x, on scores `p` (n,) and targets `t` (n,) with a positive"
    order = np.argsort(-p, kind='stable')
    s,hit = p[order],np.cumsum(t[order])
    last  = np.r_[s[1:] != s[:-1], True]      # equal scores are predicted together
    return (hit/np.arange(1, len(s)+1))[last].max()

def _warn_silent(score, p, t, thresh, vocab):
    """Warn of the classes that `thresh` never predicts, by their names in `vocab`: a floor that cannot be reached, or
    an accuracy that is highest so, silences them on all new data"""
    if vocab is not None and len(vocab) != p.shape[1]:
        raise ValueError(f"vocab has {len(vocab)} names, but there are {p.shape[1]} classes")
    idxs = np.flatnonzero(_silent(p, t, thresh))
    if not len(idxs): return
    floor = score.name == 'recall_at_precision'
    def named(i):
        x,y  = (p[:,i], t[:,i]) if len(thresh) > 1 else (p.ravel(), t.ravel())
        most = f' (at most {_highest_precision(x, y):.3g})' if floor else ''
        return (repr(vocab[i]) if vocab is not None else f'class {i}') + most if len(thresh) > 1 else most.strip(' ()')
    names = ', '.join(named(i) for i in idxs[:20]) + (', ...' if len(idxs) > 20 else '')
    where = f" for {len(idxs)} of {len(thresh)} classes: {names}" if len(thresh) > 1 else f": {names}" if names else ''
    never = 'they are never predicted' if len(idxs) > 1 else 'it is never predicted' if len(thresh) > 1 else \
            'nothing is predicted'
    what  = (f"no threshold reaches a precision of {score.at:g}" if floor else
             f"to predict nothing has the best {score.name}") + where
    then  = "lower `at`, or take score='f1'" if floor else "score='f1' predicts every class"
    warn(f"{what}. With the threshold that is returned {never}; {then}")

# ---- thresholds

@checked(probs=_SCORES, targs=_TARGS)
def best_threshold(
    probs,                # (n, c) or (n,) in [0, 1], Tensor or array; (n,) is one class
    targs,                # same shape, 0 or 1 in any type
    score:str='f1',       # 'f1', 'fbeta', 'accuracy', 'jaccard', 'recall_at_precision' or 'precision_at_recall'
    per_class:bool=False, # one threshold for each class, or one for all
    beta:float=1.,        # for 'fbeta': how many times recall weighs more than precision
    at:float=None,        # for the last two: the lowest precision, or recall, to accept, in (0, 1]
    average:str='micro',  # what one threshold for all maximises: the score of all entries together ('micro'), or the
                          #   mean of the classes' ('macro')
    vocab=None,           # list of the class names, for the warning
) -> tuple:               # (threshold, value), floats, or (c,) float32 as `probs`
    """The threshold that maximises `score` under the rule `prob > thresh`, and the value that it reaches there.

    Exact, not a grid: every distinct score is a candidate, and the threshold lies midway between two of them (or is
    the lower one, if no number of their type lies between). Below the lowest it predicts all: half of it, or a small
    negative number if it is 0. Above the highest it predicts none: midway to 1. A class without positives gets .5 and
    the value nan; it takes no part in a macro mean. Among equally good cuts the one nearest .5 is taken, where a model
    trained by cross-entropy should be cut if nothing else is known: on new data, in simulations of small sets, it did
    better than the one in the widest gap for F1 and Jaccard, and neither better nor worse for accuracy. For
    'recall_at_precision' the one with the highest precision is taken, for 'precision_at_recall' that with the most
    recall.
    Where no threshold reaches the precision that 'recall_at_precision' asks for, nothing is predicted, with recall 0;
    where to predict nothing has the best accuracy, too. A warning names the classes that are then never predicted.
    Scores in float64 are cut at a float32 number, the best of these"""
    score,macro = _settings(score, per_class, beta, at, average)
    p,t = _read(probs, targs)
    lower,upper,v = _search(_sorted_keys(_up32(p), t, not (per_class or macro)), score, macro).T
    thresh = _midway(lower, upper, probs)
    _warn_silent(score, p, t, thresh, vocab)
    return (_like(thresh, probs),_like(v, probs)) if per_class else (float(thresh[0]),float(v[0]))

def _counts(p, t, thresholds):
    "(k, c) true positives and predictions under each of the sorted `thresholds` (k,)"
    k,c = len(thresholds),p.shape[1]
    counts = np.zeros((c, k+1, 2), np.int64) # class, how many thresholds the score exceeds, target
    for i in range(0, c, 16):
        x = np.searchsorted(thresholds, p[:,i:i+16])*2 + t[:,i:i+16] # 'left': thresholds that are smaller, not equal
        m = x.shape[1]
        x += np.arange(m)*(2*k+2)
        counts[i:i+16] = np.bincount(x.ravel(), minlength=m*(2*k+2)).reshape(m, k+1, 2)
    over = counts[:,::-1].cumsum(1)[:,::-1][:,1:] # (c, k, 2)
    return over[...,1].T,over.sum(-1).T

@checked(probs=_SCORES, targs=_TARGS, thresholds=numbers((None,), what="a list of numbers", lo=-1e30, hi=1e30))
def sweep_thresholds(
    probs,                       # (n, c) or (n,) in [0, 1]
    targs,                       # same shape, 0 or 1
    thresholds=None,             # (k,) numbers in any order; None = 29 from .05 to .95
    scores=('accuracy', 'f1'),   # of 'f1', 'fbeta', 'accuracy', 'jaccard', 'precision', 'recall'
    average:str='micro',         # all entries together, or 'macro': the mean over the classes that have positives
    beta:float=1.,               # for 'fbeta'
) -> pd.DataFrame:               # a row for each threshold: `threshold`, then a column for each score
    "The `scores` under each of the `thresholds`. Precision is 0 where nothing is predicted; without positives all nan"
    if not isinstance(scores, (str, list, tuple)):
        raise ValueError(f"scores: expected a list of {', '.join(CURVES)}, got {brief(scores)}")
    scores = (scores,) if isinstance(scores, str) else tuple(scores)
    for o in scores: choice(*CURVES)('scores', o)
    if beta != 1 and 'fbeta' not in scores:
        raise ValueError(f"beta={beta} has no meaning for scores {scores}; use 'fbeta'")
    fns    = {o: _score(o, CURVES, average, beta if o == 'fbeta' else 1.) for o in scores}
    p,t    = _read(probs, targs)
    values = np.linspace(.05, .95, 29) if thresholds is None else _numpy(thresholds).astype(np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"thresholds are {values}, expected a list of finite numbers")
    cuts,back = np.unique(_cast(values, probs), return_inverse=True)
    tp,pred = _counts(p, t, cuts)
    columns = {o: f.mean(tp, pred, t.sum(0), len(p), average == 'macro')[back] for o,f in fns.items()}
    return pd.DataFrame({'threshold': values, **columns})

@checked(probs=_SCORES, targs=_TARGS, n=whole(1, 10**6))
def bootstrap_threshold(
    probs,                # (n, c) or (n,) in [0, 1]
    targs,                # same shape, 0 or 1
    score:str='f1',       # as in `best_threshold`, which also takes the `kwargs`: beta, at, average
    per_class:bool=False, # a row for each class, or one row
    n:int=200,            # number of resamples
    ci:float=.95,         # share of the resamples inside the interval, in (0, 1)
    seed:int=0,           # of the resamples
    vocab=None,           # list of the class names, for the warning of `best_threshold`
    **kwargs,
) -> pd.DataFrame:        # columns threshold, low, high, value, corrected, value_low, value_high
    """How far the result of `best_threshold` depends on the sample, from resamples of the images (rows).

    `low` to `high` is the percentile interval of the resamples' best thresholds. `value` is what `threshold` reaches on
    these data, which is too high for new ones, since it was chosen on them. `corrected` is `value` less the optimism:
    the mean over the resamples of what their best threshold reaches there, less what it reaches on all data (Harrell et
    al., 1996). `value_low` to `value_high` is for new data: it spans the percentile intervals of the resamples' best
    values and of what `threshold` reaches on them, less the optimism. In simulations of 60 to
    1000 images, 95 % intervals held the value of `threshold` on new data in 87 to 96 % of the samples and the best
    value of any threshold in 90 to 97 %; the plain percentile interval of the best values in 68 to 79 % and 77 to 86 %.

    For 'recall_at_precision' values on other data are the recall, for 'precision_at_recall' the precision: there the
    floor may be missed. A resample in which a class has no positives does not count for it; a class that has none gets
    an interval of nan"""
    score,macro = _settings(score, per_class, **kwargs)
    p,t = _read(probs, targs)
    one = not (per_class or macro)
    keys  = _keys(_up32(p), t).reshape(1, -1) if one else _keys(_up32(p).T, t.T)
    order = np.argsort(keys, 1)
    keys,rows = np.take_along_axis(keys, order, 1),order//p.shape[1] if one else order
    rng,(lower,upper,value) = np.random.default_rng(seed),_search(keys, score, macro).T
    thresh,found = _midway(lower, upper, probs),[]
    _warn_silent(score, p, t, thresh, vocab)
    for _ in range(n): # what is drawn several times is repeated in place, so that a resample is born sorted
        times = np.bincount(rng.integers(len(p), size=len(p)), minlength=len(p))
        drawn = [np.repeat(k, times[r]) for k,r in zip(keys, rows)]
        lower,upper,best = _search(drawn, score, macro).T
        again = np.where(np.isnan(best), np.nan, _midway(lower, upper, probs))
        found.append((again, best, best - _reached(keys, again, score, macro), _reached(drawn, thresh, score, macro)))
    again,best,optimism,same = np.moveaxis(found, 1, 0)                        # (n, m) each
    optimism = np.array([o[~np.isnan(o)].mean() if len(o[~np.isnan(o)]) else np.nan for o in optimism.T])
    (low,high),*ends = (_interval(o, ci) for o in (again, same, best))
    (vlow,_),(_,vhigh) = np.minimum(*ends),np.maximum(*ends)
    return pd.DataFrame(dict(threshold=thresh, low=low, high=high, value=value, corrected=value - optimism,
                             value_low=np.maximum(vlow - optimism, 0), value_high=vhigh - optimism))

def _reached(cols, thresh, score, macro):
    "(m,) the score, without its floor, of `thresh` (m,) on each of the columns of sorted keys, or the mean over them"
    i = [np.searchsorted(_scores(k), x, 'right') for k,x in zip(cols, np.broadcast_to(thresh, len(cols)))]
    tp,pos = np.array([((k[j:] & 1).sum(), (k & 1).sum()) for k,j in zip(cols, i)], np.int64).T
    pred,n = len(cols[0]) - np.array(i),len(cols[0])
    of = _Score(score.name.split('_at_')[0], score.beta)
    return np.atleast_1d(of.mean(tp, pred, pos, n, True)) if macro else of(tp, pred, pos, n)

def _interval(x, ci):
    "(2, m) ends of the middle `ci` of each column of `x` (n, m), without its nans"
    q = 50*(1-ci),50*(1+ci)
    return np.array([np.percentile(o, q) if len(o) else (np.nan, np.nan) for o in (o[~np.isnan(o)] for o in x.T)]).T

@checked(probs=_SCORES, targs=_TARGS)
def out_of_fold_threshold(
    probs,                # (n, c) or (n,) in [0, 1]; themselves out of fold, if the models were cross-validated
    targs,                # same shape, 0 or 1
    folds,                # (n,) ids of any hashable type: fold, person, video
    score:str='f1',       # as in `best_threshold`, which also takes the `kwargs`: beta, at, average
    per_class:bool=False, # one threshold for each class, or one for all
    **kwargs,
) -> tuple:               # (k,) or (k, c) float32 thresholds as `probs`, a fold as it first occurs; value, or (c,)
    """The honest value of a tuned threshold: each fold is decided by the threshold that is best on all other folds.

    The value is the score of all these decisions together. For 'recall_at_precision' it is their recall, for
    'precision_at_recall' their precision: out of fold the floor may be missed"""
    score,macro = _settings(score, per_class, **kwargs)
    p,t = _read(probs, targs)
    folds = several(Kind("an id, such as a number or a name", lambda o: hash(o) is not None),
                    "a list of fold ids, one for each row of probs")('folds', folds)
    if len(folds) != len(p):
        raise ValueError(f"{len(folds)} fold ids for {len(p)} rows of probs; expected one for each row")
    nan = [i for i,o in enumerate(folds) if o != o]
    if nan: raise ValueError(f"the fold id of row {nan[0]} is nan; give every row a fold")
    ids  = {o:i for i,o in enumerate(dict.fromkeys(folds))}
    fold = np.array([ids[o] for o in folds])
    if len(ids) < 2: raise ValueError(f"all rows are of fold {folds[0]!r}; expected at least two folds")
    x,one = _up32(p),not (per_class or macro)
    cuts = [_search(_sorted_keys(x[fold != i], t[fold != i], one), score, macro) for i in range(len(ids))]
    lower,upper,_ = np.moveaxis(cuts, -1, 0)
    thresh = _midway(lower, upper, probs) # (k, c) or (k, 1)
    never = sum(_silent(x[fold != i], t[fold != i], thresh[i]).any() for i in range(len(ids)))
    if never and score.name == 'recall_at_precision': warn(
        f"no threshold reaches a precision of {score.at:g} on all other folds for {never} of {len(ids)} folds"
        f"{', for some class' if per_class else ''}: nothing is predicted there; lower `at`")
    hit = x > thresh[fold]
    counts = (hit & t).sum(0),hit.sum(0),t.sum(0),len(p)
    reached = _Score(score.name.split('_at_')[0], score.beta)
    if per_class: return _like(thresh, probs),_like(reached(*counts), probs)
    return _like(thresh[:,0], probs),float(reached.mean(*counts, macro))

# ---- calibration

@checked(logits=_SCORES, targs=_TARGS)
def fit_temperature(
    logits,               # (n, c) or (n,) before the sigmoid, Tensor or array
    targs,                # same shape, 0 or 1
    per_class:bool=False, # one temperature for each class, or one for all
):                        # float, or (c,) float32 as `logits`
    """The T > 0 for which `sigmoid(logits/T)` has the least cross-entropy (Guo et al., 2017, arXiv:1706.04599).

    T is sought in [1/20, 20] and is the bound where the data pull beyond it: low where the sign of the logits tells the
    targets without error, high where they tell nothing. With targets of one kind only it is 1"""
    z,t = _read(logits, targs, logits=True)
    if not per_class: return _temperature(z.ravel(), t.ravel())
    return _like([_temperature(z[:,i], t[:,i]) for i in range(z.shape[1])], logits)

def _temperature(z, t):
    "The best T for logits `z` (n,) and targets `t` (n,)"
    if t.all() or not t.any(): return 1.
    z = z.astype(np.float64)
    low,high,a = 1/_T_MAX,_T_MAX,1. # of a = 1/T, in which the loss is convex
    def slopes(a): # first and second derivative of the loss; tanh, since exp overflows
        s = .5 + .5*np.tanh(a/2*z)
        return z @ (s-t),(z*z) @ (s*(1-s))
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

@checked(probs=_SCORES, targs=_TARGS)
def reliability(
    probs,          # (n, c) or (n,) in [0, 1]
    targs,          # same shape, 0 or 1
    n_bins:int=10,  # of equal width, (low, high]; 0 belongs to the first
) -> pd.DataFrame:  # a row for each bin: low, high, n, score (mean), positive (fraction); the last two nan where n is 0
    "What the scores promise and what comes true, over all entries of all classes together"
    p,t   = (o.ravel() for o in _read(probs, targs))
    edges = np.linspace(0, 1, n_bins+1)
    bins  = np.searchsorted(_cast(edges[1:-1], probs), p)
    n,score,positive = (np.bincount(bins, w, n_bins) for w in (None, p, t))
    some  = np.where(n > 0, n, np.nan)
    return pd.DataFrame(dict(low=edges[:-1], high=edges[1:], n=n, score=score/some, positive=positive/some))

@checked(probs=_SCORES, targs=_TARGS)
def calibration_error(
    probs,         # (n, c) or (n,) in [0, 1]
    targs,         # same shape, 0 or 1
    n_bins:int=10, # of equal width
) -> float:        # in [0, 1]
    """The expected calibration error: the mean distance of score and fraction positive in a bin, weighted by entries.

    Guo et al., 2017, arXiv:1706.04599, eq. 3, for binary decisions: the score is the confidence in 'yes', even below
    .5"""
    return _error(reliability(probs, targs, n_bins))

def _error(bins): return float(((bins.score-bins.positive).abs()*bins.n).sum()/bins.n.sum())

# ---- plots

_HUES = dict(score='#0072b2', precision='#d55e00', recall='#009e73', mark='#882255', ink='#444444')

def _axes(ax, title, xlabel, ylabel):
    "`ax`, or that of a new figure, with a quiet frame over the unit square"
    if ax is None:
        import matplotlib.pyplot as plt
        ax = plt.subplots(figsize=(7.2, 4.5), layout='constrained')[1]
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, loc='left')
    _quiet(ax)
    return ax

def _quiet(ax):
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=.25)
    ax.set_axisbelow(True)

def _legend(ax):
    "The legend to the right of `ax`, where it covers no curve"
    ax.legend(loc='upper left', bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, fontsize=9)

@checked(probs=_SCORES, targs=_TARGS)
def plot_thresholds(
    probs,               # (n, c) or (n,) in [0, 1]
    targs,               # same shape, 0 or 1
    score:str='f1',      # as in `best_threshold`
    average:str='micro', # all entries together, or 'macro': the mean over the classes
    ax=None,             # matplotlib axes, of a figure with layout='constrained', since the legend is beside them; None
                         # makes a figure
    beta:float=1.,       # for 'fbeta'
    at:float=None,       # for 'recall_at_precision' and 'precision_at_recall'
):                       # the axes
    "The curve of `score` with those of precision and recall, and the exact optimum on it"
    thresh,best = best_threshold(probs, targs, score, beta=beta, at=at, average=average)
    reached = best > 0 or np.isnan(best)
    name,floor  = score.split('_at_') if '_at_' in score else (score, None)
    shown = name.capitalize() if score != 'fbeta' else f'F{beta:g}'
    columns = list(dict.fromkeys((name, 'precision', 'recall')))
    curves = sweep_thresholds(probs, targs, np.linspace(0, 1, 401), columns, average, beta)
    # precision ends where nothing is found, rather than falling to 0
    curves['precision'] = curves.precision.where(curves.recall > 0)
    ax = _axes(ax, f"{shown} by threshold, {average} average", 'Threshold', 'Score')
    for o,ls in (('precision', '--'), ('recall', '-.')):
        if o != name: ax.plot(curves.threshold, curves[o], color=_HUES[o], lw=1.5, ls=ls, label=o.capitalize())
    ax.plot(curves.threshold, curves[name], color=_HUES['score'], lw=2.5, label=shown)
    if floor: ax.axhline(at, color=_HUES['ink'], lw=1, ls=':', label=f'{floor.capitalize()} at least {at:g}' +
                         ('' if reached else ': no threshold reaches it'))
    ax.plot([thresh]*2, [0, best], color=_HUES['mark'], lw=1, ls=':')
    ax.plot(thresh, best, 'o', color=_HUES['mark'], ms=8, mec='white', mew=1.5, zorder=5, clip_on=False, ls='none',
            label=f'Best: {best:.3f} at {thresh:.3f}' + ('' if reached else ', nothing is predicted'))
    _legend(ax)
    return ax

@checked(hits=numbers(what="a number, or several", types='iuf', lo=0),
         n=numbers(what="a number, or several", types='iuf', lo=0, hi=10**15))
def wilson_interval(
    hits,          # (k,) or one: how often it happened
    n,             # same shape: of how many
    ci:float=.95,  # confidence, in (0, 1)
) -> tuple:        # low, high, each as `hits`, in [0, 1]; nan where n is 0
    "The confidence interval of a share of independent cases (Wilson, 1927); unlike the normal one it stays in [0, 1]"
    hits,n = np.asarray(hits, float),np.asarray(n, float)
    if n.ndim and hits.ndim and hits.shape != n.shape:
        raise ValueError(f"hits and n: expected one shape, got {hits.shape} and {n.shape}")
    if (hits > n).any(): raise ValueError(f"hits: expected at most n, got {hits} of {n}")
    z2 = NormalDist().inv_cdf(.5 + ci/2)**2
    n  = np.where(n > 0, n, np.nan)
    p,share = hits/n,1/(1 + z2/n)
    mid,half = share*(p + z2/(2*n)),share*np.sqrt(z2*(p*(1-p)/n + z2/(4*n*n)))
    return (mid-half).clip(0, 1),(mid+half).clip(0, 1)

def _below(ax):
    "New axes in the lower quarter of the place of `ax`, with the same x; below it where it has no place in a grid"
    spec = ax.get_subplotspec()
    if spec is None: return ax.inset_axes([0, -.33, 1, .27], sharex=ax)
    upper,lower = spec.subgridspec(2, 1, height_ratios=[3, 1])
    ax.set_subplotspec(upper)
    return ax.figure.add_subplot(lower, sharex=ax)

@checked(probs=_SCORES, targs=_TARGS)
def plot_reliability(
    probs,         # (n, c) or (n,) in [0, 1]
    targs,         # same shape, 0 or 1
    n_bins:int=10, # of equal width
    ax=None,       # matplotlib axes, of a figure with layout='constrained', since legend and histogram are beside and
                   # below them; None makes a figure
):                 # the axes of the curve; those of the histogram come last in `figure.axes`
    """The fraction of positives in each bin against the mean score there: on the diagonal, scores are probabilities.
    With 95 % Wilson intervals, which take all entries for independent; below, the number of entries in each bin"""
    bins = reliability(probs, targs, n_bins)
    some = bins[bins.n > 0]
    if ax is None:
        import matplotlib.pyplot as plt
        ax = plt.subplots(figsize=(6.8, 5.4), layout='constrained')[1]
    ax = _axes(ax, 'Reliability', None, 'Fraction of positives')
    ax.plot([0, 1], [0, 1], color=_HUES['ink'], lw=1, ls=':', label='Perfectly calibrated')
    low,high = wilson_interval((some.positive*some.n).round(), some.n)
    ax.vlines(some.score, low, high, color=_HUES['score'], lw=1.5, alpha=.5, label='95 % interval (Wilson)')
    ax.plot(some.score, some.positive, 'o-', color=_HUES['score'], ms=6, lw=2, mec='white',
            label=f'Calibration error {_error(bins):.3f}')
    _legend(ax)
    below = _below(ax)
    below.bar(bins.low, bins.n, bins.high-bins.low, align='edge', color='#8fa9bd', ec='white')
    below.set(yscale='log', ylim=(.5, 2.5*bins.n.max()), xlabel='Mean score', ylabel='Entries')
    _quiet(below)
    ax.tick_params(labelbottom=False)
    return ax
