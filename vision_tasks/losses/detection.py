"The loss of detectors: the sum of the losses that the model returns. It holds the threshold"
from __future__ import annotations
import torch
from torch import Tensor
from ..arguments import Kind, checked, choice
from .base import THRESH, WEIGHT, Thresholded

__all__ = ['DetectionLoss']

class DetectionLoss(Thresholded):
    """The sum of the losses that a detector returns by name. It also holds the threshold: a detection is predicted
    where its score is above it, or above that of its class"""
    @checked(thresh=THRESH, reduction=choice('mean', 'none'), weights=Kind(
        "a dict from the name of a loss to its weight, a number of 0 or more",
        lambda o: isinstance(o, dict) and all(isinstance(k, str) and WEIGHT.ok(v) for k,v in o.items())))
    def __init__(self,
        weights:dict=None,  # name of a loss -> its weight, 0 or more; None (default): 1 each
        thresh=.5,          # in [0, 1], or one per class without background
        reduction='mean',   # over the images, as the detectors themselves do; 'none': (1,), for batches of one image
    ):
        self.weights,self.thresh,self.reduction = dict(weights or {}),thresh,reduction

    def __repr__(self): return f"DetectionLoss(weights={self.weights}, thresh={self.thresh})"

    def __call__(self, parts, *targs):
        unknown = sorted({*self.weights} - {*parts})
        if unknown: raise ValueError(f"weights names {unknown}, but the losses of this detector are {sorted(parts)}")
        loss = sum(v.float().mean()*self.weights.get(k, 1.) for k,v in parts.items())
        if self.reduction != 'none': return loss
        if targs and len(targs[0]) > 1: raise ValueError("a detector's losses are means over a batch; for those of "
                                                         f"single images pass batches of one, not of {len(targs[0])}")
        return loss.view(1)

    def activation(self, dets, # detections, whose scores are probabilities already
    ): return dets

    def decodes(self,
        dets, # (..., 6) x1 y1 x2 y2 score label; or a tuple of these and masks (..., m, m)
    ):        # the same shapes
        "`dets` with zeros in the rows of detections that are not predicted"
        if isinstance(dets, tuple):
            on = above(dets[0], self.thresh)[...,None]
            return dets[0]*on,dets[1]*on[...,None]
        return dets*above(dets, self.thresh)[...,None]

def above(
    dets:Tensor, # (..., 6) x1 y1 x2 y2 score label; label 0: no detection
    thresh,      # a number, or one per class without background
) -> Tensor:     # (...) bool
    "Which detections have a score above the threshold of their class"
    label = dets[...,5].long()
    t = torch.as_tensor(thresh, dtype=torch.float32, device=dets.device)
    return (label > 0) & (dets[...,4] > (t if t.ndim == 0 else t[(label-1).clamp(min=0)]))
