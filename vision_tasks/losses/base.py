"What the losses share: lookup by name, and the kinds of their arguments"
from __future__ import annotations
import numpy as np
import torch
from torch import Tensor
from ..arguments import LEAST_THRESH, choice, nearest, number, numbers

__all__ = []

def loss_by_name(o, losses, shape):
    "An instance of the loss in `losses` that the text `o` names; anything else as it is. `shape` is for the error"
    if not isinstance(o, str): return o
    if o not in losses:
        raise ValueError(f"no loss is called {o!r}{nearest(o, losses)}; there are {list(losses)}; "
                         f"or pass a loss on {shape} logits")
    return losses[o]()

REDUCTION = choice('mean', 'sum', 'none')
WEIGHT    = number(0)
BETA_OF_LOSS = number(0, 10**6)
MAX_FLOAT32  = torch.finfo(torch.float32).max
WEIGHTS   = numbers((None,), what="a list of weights, finite numbers of 0 or more, one for each class", types='iuf',
                    lo=0, hi=MAX_FLOAT32)
THRESH    = numbers((), (None,), what="a number in [0, 1], or one for each class", types='iuf', lo=LEAST_THRESH, hi=1)

def as_float(v):
    "`v` as a float32 tensor, None as it is"
    return None if v is None else torch.as_tensor(v, dtype=torch.float32)

def check_length(name, v, c):
    "Raise `ValueError` where `v` has one value per class for other than `c` classes"
    if isinstance(v, Tensor) and v.ndim and len(v) != c:
        raise ValueError(f"{name} has {len(v)} values, but there are {c} classes; "
                         "give one number, or one for each class in the order of dls.vocab")

class Thresholded:
    "Base of the losses that hold the threshold of `decodes`, so that it is exported with the learner"
    @property
    def thresh(self):
        "Threshold above which something is predicted: a float in [0, 1], or (c,) floats, one per class"
        return self._thresh
    @thresh.setter
    def thresh(self, v):
        v = THRESH('thresh', v)
        v = torch.as_tensor(np.asarray(v.cpu() if isinstance(v, Tensor) else v, dtype=np.float64), dtype=torch.float32)
        self._thresh = v.item() if v.ndim == 0 else v
