"Losses of semantic segmentation; void pixels are excluded"
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor
from ..arguments import WIDTH_HEIGHT, Kind, checked
from .base import REDUCTION, WEIGHT, WEIGHTS, as_float, check_length
from ..models.layers import zero_loss
from ..ops.masks import VOID

__all__ = ['SegmentationLoss', 'crop_target', 'SegmentationCE', 'SegmentationFocal', 'SegmentationDice',
           'SegmentationCEDice', 'SEGMENTATION_LOSSES']

class SegmentationLoss:
    """Base of the losses on (b, c, h, w) logits and (b, h, w) class indices of any integer dtype, 255 = void, which
    has neither loss nor gradient; a batch of nothing else has loss 0. Logits of fewer pixels than the target, such as
    those of a U-Net with valid padding, are compared with its centre"""
    @checked(reduction=REDUCTION)
    def __init__(self,
        reduction='mean', # or 'sum'; or 'none': (b,), the 'mean' of each image by itself
    ):
        self.reduction = reduction

    def __repr__(self): return f"{type(self).__name__}()"

    def loss(self,
        x,         # (b, c, h, w) float32 logits
        y,         # (b, h, w) int64 class indices, 0 where void
        on,        # (b, h, w) bool, False where void
        reduction, # 'mean', 'sum' or 'none'
    ):             # (); or (b,) for 'none'
        raise NotImplementedError

    def __call__(self, inp, targ):
        x,y = inp.as_subclass(Tensor).float(),targ.as_subclass(Tensor)
        if x.ndim != 4 or y.ndim != 3 or len(x) != len(y) or y.is_floating_point():
            raise ValueError("expected (b, c, h, w) logits and (b, h, w) class indices, whole numbers; "
                             f"got {tuple(x.shape)} and {tuple(y.shape)} of {y.dtype}")
        y,c = crop_target.unchecked(y, x.shape[-2:]).long(),x.shape[1]
        on = y != VOID
        bad = on & ((y < 0) | (y >= c))   # on a GPU this would be an assert that ends the process
        any_bad,any_on = torch.stack([bad.any(), on.any()]).tolist()   # one read, since a GPU waits for each
        if any_bad:
            raise ValueError(f"the target holds {y[bad].unique()[:8].tolist()}, but the model gives {c} classes, 0 to "
                             f"{c-1}, beside {VOID} for void: the last layer needs more, or these values are void")
        if not any_on:
            nil = zero_loss([x])
            return nil.expand(len(x)) if self.reduction == 'none' else nil
        return self.loss(x, y.masked_fill(~on, 0), on, self.reduction)

    def activation(self,
        x, # (b, c, h, w) logits
    ):     # (b, c, h, w) probabilities
        return x.softmax(1)

    def decodes(self,
        x, # (b, c, h, w) probabilities or logits
    ):     # (b, h, w) class indices
        return x.argmax(1)

@checked(targ=Kind("a tensor (b, h, w)", lambda o: isinstance(o, Tensor) and o.ndim == 3), hw=WIDTH_HEIGHT)
def crop_target(
    targ:Tensor, # (b, h, w) of class indices
    hw,          # (height, width) of the logits in pixels
) -> Tensor:     # (b, *hw)
    """The centre of `targ`: the same number of pixels is cropped at each of its four sides. Raises `ValueError` where
    that does not have the size `hw`"""
    (h,w),(H,W) = hw,targ.shape[-2:]
    m = max((H-h)//2, 0)
    centre = targ[:, m:H-m, m:W-m]
    if centre.shape[-2:] == (h, w): return centre
    raise ValueError(f"the model gives logits of {h} x {w} for targets of {H} x {W}, height x width; expected the "
                     "same, or fewer by the same number at each of the four sides: resize the logits in the model")

class SegmentationCE(SegmentationLoss):
    "Cross entropy; 'mean' is the weighted mean over the pixels, as in PyTorch"
    @checked(weight=WEIGHTS)
    def __init__(self,
        weight=None,   # (c,): weight of the pixels of each class, as `class_weights` returns it; None (default): 1 each
        **kwargs,      # `reduction`
    ):
        super().__init__(**kwargs)
        self.weight = as_float(weight)

    def each(self,
        x, # (b, c, h, w) float32 logits
        y, # (b, h, w) int64 class indices, 0 where void
    ):     # (b, h, w) losses
        return F.cross_entropy(x, y, reduction='none')

    def pixel_weights(self,
        y,  # (b, h, w) int64 class indices, 0 where void
        on, # (b, h, w) bool, False where void
        c,  # number of classes
    ):      # (b, h, w) weights, 0 where void
        if self.weight is None: return on.float()
        check_length('weight', self.weight, c)
        return self.weight.to(y.device)[y]*on

    def loss(self, x, y, on, reduction):
        w = self.pixel_weights(y, on, x.shape[1])
        loss = torch.where(w > 0, self.each(x, y), 0.)*w   # the loss of a pixel without weight may be infinite
        if reduction == 'sum': return loss.sum()
        dims = (1, 2) if reduction == 'none' else (0, 1, 2)
        n = w.sum(dims)
        return loss.sum(dims)/torch.where(n > 0, n, 1.)

class SegmentationFocal(SegmentationCE):
    """Focal loss (Lin et al., 2017, arXiv:1708.02002) over classes that exclude each other: easy pixels are weighted
    down by (1-p)^gamma. 'mean' is the weighted mean over all pixels (in the paper, over those of objects)"""
    @checked(gamma=WEIGHT)
    def __init__(self,
        gamma:float=2., # 0 or above; 0: cross entropy
        weight=None,    # (c,): alpha of the paper, one per class; None (default): 1 each
        **kwargs,       # `reduction`
    ):
        super().__init__(weight, **kwargs)
        self.gamma = gamma
    def each(self, x, y):
        ce = super().each(x, y)
        return ce*(-torch.expm1(-ce)).clamp(min=1e-6)**self.gamma   # 0**gamma has no gradient for gamma < 1

class SegmentationDice(SegmentationLoss):
    """1 - Dice of probabilities, 2 sum(p*t)/(sum(p) + sum(t)): of each class over all pixels of the batch, then the
    mean ('sum': the sum) over the classes that occur in the targets of the batch. Absent classes are excluded; pixels
    wrongly predicted as one of them lower the Dice of their true class"""
    @checked(smooth=WEIGHT)
    def __init__(self,
        smooth:float=1., # pixels added to numerator and denominator, 0 or above, so that a class of a few pixels does
                         # not jump between 0 and 1
        **kwargs,        # `reduction`
    ):
        super().__init__(**kwargs)
        self.smooth = smooth
    def loss(self, x, y, on, reduction):
        p,(b,c,h,_) = x.softmax(1),x.shape
        # a bin for each row and class, and one for its void pixels: float32 cannot sum a whole image pixel by pixel
        bins = (y.masked_fill(~on, c) + (c+1)*torch.arange(b*h, device=y.device).view(b, h, 1)).flatten()
        per_class = lambda o: o.view(b, h, c+1).sum(1)[:,:c]
        n   = per_class(torch.bincount(bins, minlength=b*h*(c+1)))
        hit = per_class(p.new_zeros(b*h*(c+1)).index_add(0, bins, p.gather(1, y[:,None]).flatten()))
        size = (p*on[:,None]).sum((2, 3)) + n
        if reduction != 'none': n,hit,size = n.sum(0),hit.sum(0),size.sum(0)
        there = n > 0
        loss = ((1 - (2*hit+self.smooth)/(size+self.smooth).clamp(min=1e-6))*there).sum(-1)
        return loss if reduction == 'sum' else loss/there.sum(-1).clamp(min=1)

class SegmentationCEDice(SegmentationLoss):
    "Cross entropy plus `dice` times the Dice loss"
    @checked(weight=WEIGHTS, dice=WEIGHT, smooth=WEIGHT)
    def __init__(self,
        weight=None,     # (c,) weights of the classes in the cross entropy; None (default): 1 each
        dice:float=1.,   # weight of the Dice loss, 0 or above
        smooth:float=1., # of the Dice loss, in pixels
        **kwargs,        # `reduction`
    ):
        super().__init__(**kwargs)
        self.parts,self.dice = (SegmentationCE(weight), SegmentationDice(smooth)),dice
    def loss(self, x, y, on, reduction):
        ce,dice = (o.loss(x, y, on, reduction) for o in self.parts)
        return ce + self.dice*dice

SEGMENTATION_LOSSES = dict(ce=SegmentationCE, focal=SegmentationFocal, dice=SegmentationDice,
                           ce_dice=SegmentationCEDice)
