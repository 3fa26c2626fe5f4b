"The loss of detectors, which sums what the model returns; it holds the threshold"
from __future__ import annotations
import torch
from torch import Tensor
from ..arguments import Kind, checked, choice
from .base import THRESH, WEIGHT

__all__ = ['DetectionLoss']

# --- objects

class DetectionLoss:
    """The sum of the losses that a detector gives by name. Its threshold says which detections count: those with a
    score above it, the class's own where there is one for each"""
    @checked(thresh=THRESH, reduction=choice('mean', 'none'), weights=Kind(
        "a dict from the name of a loss to its weight, a number of 0 or more",
        lambda o: isinstance(o, dict) and all(isinstance(k, str) and WEIGHT.ok(v) for k,v in o.items())))
    def __init__(self,
        weights:dict=None,  # name -> what that loss counts; None = 1 each
        thresh=.5,          # in [0, 1], or one for each class without background
        reduction='mean',   # over the pictures, as the detectors themselves do; 'none', for batches of one: (1,)
    ):
        self.weights,self.thresh,self.reduction = dict(weights or {}),thresh,reduction

    def __repr__(self): return f"DetectionLoss(weights={self.weights}, thresh={self.thresh})"

    def __call__(self, parts, *targs):
        unknown = sorted({*self.weights} - {*parts})
        if unknown: raise ValueError(f"weights names {unknown}, but the losses of this detector are {sorted(parts)}")
        loss = sum(v.float().mean()*self.weights.get(k, 1.) for k,v in parts.items())
        if self.reduction != 'none': return loss
        if targs and len(targs[0]) > 1: raise ValueError("a detector's losses are means over a batch; for those of "
                                                         f"single pictures take batches of one, not {len(targs[0])}")
        return loss.view(1)

    def activation(self, dets): return dets
    def decodes(self, dets):    # (..., 6) -> (..., 6); or with the masks, ((..., 6), (..., m, m)) -> the same
        "`dets` with zeros in the rows that do not count"
        if isinstance(dets, tuple):
            on = above(dets[0], self.thresh)[...,None]
            return dets[0]*on,dets[1]*on[...,None]
        return dets*above(dets, self.thresh)[...,None]

def above(
    dets:Tensor, # (..., 6) x1 y1 x2 y2 score label, label 0 = none
    thresh,      # a number, or one for each class without background
) -> Tensor:     # (...) bool
    "Which detections have a score above the threshold of their class"
    label = dets[...,5].long()
    t = torch.as_tensor(thresh, dtype=torch.float32, device=dets.device)
    return (label > 0) & (dets[...,4] > (t if t.ndim == 0 else t[(label-1).clamp(min=0)]))
