"""Losses for one class per image; they hold the threshold and the temperature, so that both are exported with the
learner"""
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor
from ..arguments import FRACTION, POSITIVE, checked
from .base import REDUCTION, THRESH, WEIGHT, WEIGHTS, Thresholded, as_float, check_length

__all__ = ['ClassificationLoss', 'ClassificationCE', 'ClassificationFocal', 'CLASSIFICATION_LOSSES']

class ClassificationLoss(Thresholded):
    """Base of the losses on (n, c) logits and (n,) class ids. It also turns logits to probabilities,
    `softmax(logits/temperature)`, and probabilities to class ids: that of the highest probability, or -1 (rejected)
    where it does not exceed the threshold"""
    y_int = True   # fastai's MixUp and CutMix then mix the losses of both images' classes

    @checked(reduction=REDUCTION, thresh=THRESH, temperature=POSITIVE, weight=WEIGHTS, label_smoothing=FRACTION)
    def __init__(self,
        weight=None,        # (c,): how much the images of each class count; None (default): all the same
        label_smoothing=0., # share of the target that is spread evenly over all classes, in [0, 1] (Szegedy et al.,
                            # 2015, arXiv:1512.00567)
        reduction='mean',   # over the images, by their weights, as PyTorch's; or 'sum'; or 'none': (n,)
        thresh=0.,          # in [0, 1], or (c,): what the probability of the predicted class must exceed for the image
                            # not to be rejected; 0 (default) rejects none
        temperature=1.,     # above 0: what logits are divided by
    ):
        self.weight,self.label_smoothing = as_float(weight),label_smoothing
        self.reduction,self.thresh,self.temperature = reduction,thresh,temperature

    def __repr__(self): return f"{type(self).__name__}(thresh={self.thresh}, temperature={self.temperature})"

    def each(self,
        x, # (n, c) float32 logits
        y, # (n,) int64 class ids
        w, # (c,) weights of the classes, or None
    ):     # (n,) losses
        raise NotImplementedError

    def __call__(self, inp, targ):
        x,y = inp.as_subclass(Tensor).float(),targ.as_subclass(Tensor)
        if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or y.is_floating_point():
            raise ValueError("expected (n, c) logits and (n,) class ids, whole numbers; "
                             f"got {tuple(x.shape)} and {tuple(y.shape)} of {y.dtype}")
        bad = (y < 0) | (y >= x.shape[1])   # what a GPU would answer with an assert that kills the process
        if bad.any():
            raise ValueError(f"the targets hold class id {y[bad][0].item()}, but the model gives {x.shape[1]} classes, "
                             f"0 to {x.shape[1]-1}: its last layer needs n_out={max(y.max().item()+1, 1)} or more")
        if self.weight is not None: check_length('weight', self.weight, x.shape[1])
        w = None if self.weight is None else self.weight.to(x.device)
        loss = self.each(x, y.long(), w)
        if self.reduction == 'none': return loss
        if self.reduction == 'sum': return loss.sum()
        n = len(y) if w is None else w[y.long()].sum()
        return loss.sum()/torch.where(n > 0, n, 1.) if w is not None else loss.mean()

    def activation(self,
        x, # (n, c) logits
    ):     # (n, c) probabilities that sum to 1
        return (x/self.temperature).softmax(-1)

    def decodes(self,
        p, # (n, c) probabilities
    ):     # (n,) class ids, -1 = rejected
        check_length('thresh', self.thresh, p.shape[-1])
        conf,idx = p.as_subclass(Tensor).max(-1)
        t = self.thresh.to(p.device)[idx] if isinstance(self.thresh, Tensor) else self.thresh
        return torch.where(conf > t, idx, -1)

class ClassificationCE(ClassificationLoss):
    "Cross entropy of the class, on logits"
    def each(self, x, y, w):
        return F.cross_entropy(x, y, weight=w, label_smoothing=self.label_smoothing, reduction='none')

class ClassificationFocal(ClassificationLoss):
    """Focal loss (Lin et al., 2017, arXiv:1708.02002) over classes that exclude each other: what is already right
    counts less by (1-p)^gamma, where p is the probability of the true class"""
    @checked(gamma=WEIGHT)
    def __init__(self,
        gamma:float=2., # 0 or above; 0 = cross entropy
        **kwargs,       # of `ClassificationLoss`: `weight` (the paper's alpha), `label_smoothing`, `thresh`, ...
    ):
        super().__init__(**kwargs)
        self.gamma = gamma
    def each(self, x, y, w):
        ce = F.cross_entropy(x, y, weight=w, label_smoothing=self.label_smoothing, reduction='none')
        if not self.gamma: return ce
        # log(1 - p) from the logits of the other classes: from p itself it would be -inf, and its gradient nan
        others = x.masked_fill(F.one_hot(y, x.shape[1]).bool(), -torch.inf)
        log = others.logsumexp(1) - x.logsumexp(1) if x.shape[1] > 1 else torch.zeros_like(ce)
        return ce*torch.exp(self.gamma*log)

CLASSIFICATION_LOSSES = dict(ce=ClassificationCE, focal=ClassificationFocal)
