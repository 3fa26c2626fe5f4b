"Where on the curve of a learning rate range test a rate is suggested, beside fastai's functions"
from __future__ import annotations
import numpy as np
from torch import Tensor
from ..arguments import checked

__all__ = ['steepest']

WINDOW = .5   # decades over which a slope is measured: those from step to step are noise

@checked()
def steepest(
    lrs:Tensor,      # (n,) learning rates, in equal steps of their logarithm
    losses:Tensor,   # (n,) smoothed losses, finite
    num_it:int,      # steps of the test; ignored, an argument of fastai's functions
) -> tuple:          # the rate, and (rate, loss) for a plot
    """The rate at which the loss falls fastest over half a decade, before its minimum. fastai's `steep` compares
    neighbouring steps, and is misled by the noise of the first ones"""
    x,y = np.log10(lrs.numpy()),losses.numpy()
    n = int(y.argmin()) + 1
    w = max(1, round(WINDOW/2/(x[1] - x[0]))) if len(x) > 1 else 1
    lo,hi = (np.clip(np.arange(n) + o, 0, n-1) for o in (-w, w))
    span  = x[hi] - x[lo]
    slope = np.divide(y[hi] - y[lo], span, out=np.zeros(n), where=span > 0)
    i = int(slope.argmin())
    return float(lrs[i]),(float(lrs[i]), float(losses[i]))
