"Scores as functions of the threshold: checked inputs, counts, sorted keys"
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from torch import Tensor, as_tensor, bfloat16
from ..arguments import BETA, Kind, choice, is_number, numbers

__all__ = []

SCORES = ('f1', 'fbeta', 'accuracy', 'jaccard', 'recall_at_precision', 'precision_at_recall') # what can be maximized
CURVES = ('f1', 'fbeta', 'accuracy', 'jaccard', 'precision', 'recall')                        # what can be swept
BELOW_ALL = -2.**-10 # predicts all if the lowest score is 0; a power of two, which half precision represents
UNIT  = 2.**44   # of the fixed-point scores of a macro mean: sums are exact, with room for 2**19 classes
MAX_TEMPERATURE = 20.      # a temperature stays within [1/20, 20]; those of Guo et al. lie between 1 and 5

# ---- input

def as_numpy(x):
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

def read_scores(probs, targs, logits=False):
    "`probs` (n, c) in float32 or float64 and `targs` (n, c) in bool, checked"
    p,t = as_numpy(probs),as_numpy(targs)
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

def cast_as(x, probs):
    "`x` rounded to the type of `probs`, where a comparison of `probs` with a number takes place; as numpy"
    if isinstance(probs, Tensor): return as_numpy(as_tensor(x).to(probs.dtype))
    return as_numpy(np.asarray(x).astype(np.asarray(probs).dtype))

def float32_like(x, probs):
    "`x` as float32 of the kind of `probs`: a plain Tensor on its device, or a numpy array"
    x = np.asarray(x, np.float32)
    return as_tensor(x, device=probs.device) if isinstance(probs, Tensor) else x

# ---- scores of counts

def _ratio(a, b): return a/np.maximum(b, 1) # 0 for 0/0: b is a count, and 0 only where a is

@dataclass(frozen=True)
class CountScore:
    "The score `name` as a function of counts"
    name:str
    beta:float=1.
    at:float=None

    def __call__(self, tp, pred, pos, n): # true positives, predicted, positive, all
        b2 = self.beta**2
        if   self.name == 'precision':    v = _ratio(tp, pred)
        elif self.name == 'recall':       v = _ratio(tp, pos)
        elif self.name == 'accuracy':     v = (n - pos - pred + 2*tp)/n
        elif self.name == 'jaccard':      v = _ratio(tp, pos + pred - tp)
        elif self.name in ('f1','fbeta'): v = _ratio((1 + b2)*tp, b2*pos + pred)
        # predicting nothing does not violate the precision, so that there is always a solution
        elif self.name == 'recall_at_precision':
            v = np.where((_ratio(tp, pred) >= self.at) | (pred == 0), _ratio(tp, pos), -1.)
        elif self.name == 'precision_at_recall': v = np.where(_ratio(tp, pos) >= self.at, _ratio(tp, pred), -1.)
        return np.where(pos > 0, v, np.nan)

    def mean(self, tp, pred, pos, n, macro): # (..., c) counts of each class
        if not macro: return self(tp.sum(-1), pred.sum(-1), pos.sum(-1), n*len(pos))
        have = pos > 0
        return self(tp, pred, pos, n)[...,have].mean(-1) if have.any() else np.full(tp.shape[:-1], np.nan)

SCORE_ARRAY  = numbers(what="scores (n, c) or (n,) as an array, a tensor or a list")
TARGET_ARRAY   = numbers(what="0 and 1 as an array, a tensor or a list of the shape of the scores")
_AVERAGE = choice('micro', 'macro')
_AT      = Kind("a number above 0, at most 1, such as 0.9", lambda o: is_number(o) and 0 < o <= 1)

def score_by_name(name, choices, average, beta=1., at=None):
    "The `CountScore` of these arguments, checked"
    choice(*choices)('score', name); _AVERAGE('average', average); BETA('beta', beta)
    if at is not None: _AT('at', at)
    if beta != 1 and name != 'fbeta': raise ValueError(f"beta={beta} has no meaning for score {name!r}; use 'fbeta'")
    if '_at_' not in name:
        if at is not None:
            raise ValueError(f"at={at} has no meaning for score {name!r}; "
                             "use 'recall_at_precision' or 'precision_at_recall'")
        return CountScore(name, beta)
    floor = name.split('_at_')[1]
    if at is None: raise ValueError(f"score {name!r} needs `at`, the lowest {floor} to accept, e.g. at=.9")
    if average == 'macro':
        raise ValueError(f"score {name!r} has no macro average; use average='micro' or per_class=True")
    return CountScore(name, at=at)

def score_settings(score, per_class, beta=1., at=None, average='micro'):
    "The arguments of `best_threshold` as a checked `CountScore`, and whether its mean over the classes is maximized"
    macro = average == 'macro' and not per_class
    return score_by_name(score, SCORES, 'micro' if per_class and average == 'macro' else average, beta, at),macro

# ---- the sorted pass

def round_up_float32(p):
    "`p` in float32, rounded up: this changes `p > x` for no float32 number x, which rounding to the nearest does"
    x = p.astype(np.float32, copy=False)
    return x if x is p else np.where(x < p, np.nextafter(x, np.float32(2)), x)

def sort_keys(p, t):
    "Score and target in one number that sorts as the score: the bits of a float32 in [0, 1], and the target below them"
    keys = np.array(p, order='C').view(np.uint32)
    keys <<= 1 # drops the sign bit, so that -0 is 0
    keys |= t
    return keys

def scores_of_keys(keys):
    "The scores in keys that `sort_keys` made"
    return (keys >> 1).view(np.float32)

def sorted_keys(p, t, pool):
    "The sorted keys of each class in turn, or of all entries together"
    if pool: keys = sort_keys(p, t).reshape(1, -1); keys.sort(); yield from keys
    else:
        for i in range(0, p.shape[1], 16): # the columns of one cache line at a time: fast to transpose, little memory
            keys = sort_keys(p[:,i:i+16].T, t[:,i:i+16].T); keys.sort(); yield from keys
