"Metrics of semantic segmentation, from the confusion matrix of pixels"
from __future__ import annotations
import torch
from torch import Tensor
from fastai.learner import Metric
from ..arguments import checked, whole
from .labels import COUNTS, NUMBERS, N_CLASSES
from ..ops.masks import VOID

__all__ = ['confusion_counts', 'iou_from_confusion', 'dice_from_confusion', 'class_accuracy_from_confusion',
           'confusion_scores', 'MeanIoU', 'PixelAccuracy', 'ClassAccuracy', 'FrequencyIoU', 'MeanDice']

@checked(pred=NUMBERS, targ=NUMBERS, n=N_CLASSES, void=whole(0, 2**15, what="a value"))
def confusion_counts(
    pred,          # class indices of any shape and integer dtype
    targ,          # class indices of the same shape
    n:int,         # number of classes
    void:int=VOID, # value of excluded pixels in `targ`, and in `pred` if it is no class
) -> Tensor:       # (n, n) int64, row = target, column = prediction; on the device of `pred`
    "Confusion matrix of pixels. Raises `ValueError` for shapes that differ, and for values that are no class or void"
    p,t = torch.as_tensor(pred),torch.as_tensor(targ)
    if p.shape != t.shape or p.is_floating_point() or t.is_floating_point():
        raise ValueError(f"expected class indices of one shape, got {tuple(p.shape)} {p.dtype} (predictions) and "
                         f"{tuple(t.shape)} {t.dtype} (targets)")
    if not p.numel(): return torch.zeros(n, n, dtype=torch.int64, device=p.device)
    p,t = (o.as_subclass(Tensor).flatten().to(o.dtype if o.dtype in _COUNTABLE else torch.int64) for o in (p, t))
    rows = max(n, void+1)
    # (4,), in one read, since a GPU waits for each
    p_min,p_max,t_min,t_max = torch.stack([o.long() for x in (p, t) for o in x.aminmax()]).tolist()
    if p_max == void >= n:
        out = p == void
        p,t = p.masked_fill(out, 0),t.long().masked_fill(out, void)
        p_max = int(p.max())
    if p_min < 0 or p_max >= n: raise _strange('prediction', p, n, void)
    if t_min < 0 or t_max >= rows: raise _strange('target', t, n, void)
    dtype = torch.int16 if rows*n < 2**15 else torch.int32 if rows*n < 2**31 else torch.int64
    # void has a row of its own, which is faster than selecting the other pixels
    table = torch.bincount(t.to(dtype, copy=True).mul_(n).add_(p), minlength=rows*n).view(rows, n)
    table[void] = 0
    if rows > n and table[n:].any(): raise _strange('target', t, n, void)
    return table[:n].clone()

_COUNTABLE = torch.uint8,torch.int8,torch.int16,torch.int32,torch.int64   # not the other unsigned ones, nor bool

def _strange(what, o, n, void):
    values = [v for v in o.unique().tolist() if not 0 <= v < n and v != void]
    return ValueError(f"the {what} holds {values[:8]}; expected class indices 0 to {n-1}, or {void} for void: "
                      "is n the number of classes, and are these class masks?")

@checked(cm=COUNTS)
def iou_from_confusion(
    cm:Tensor, # (c, c) counts, row = target, column = prediction
) -> Tensor:   # (c,) float64 in [0, 1]; nan for a class that is neither predicted nor present
    "Intersection over union of each class"
    cm = cm.double()
    return cm.diag()/(cm.sum(0) + cm.sum(1) - cm.diag())

@checked(cm=COUNTS)
def dice_from_confusion(
    cm:Tensor, # (c, c) counts, row = target, column = prediction
) -> Tensor:   # (c,) float64 in [0, 1]; nan for a class that is neither predicted nor present
    "Dice coefficient (F1) of each class"
    cm = cm.double()
    return 2*cm.diag()/(cm.sum(0) + cm.sum(1))

@checked(cm=COUNTS)
def class_accuracy_from_confusion(
    cm:Tensor, # (c, c) counts, row = target, column = prediction
) -> Tensor:   # (c,) float64 in [0, 1]; nan for a class that is not present
    "Share of the pixels of each class that are correct (recall)"
    cm = cm.double()
    return cm.diag()/cm.sum(1)

@checked(cm=COUNTS)
def confusion_scores(
    cm:Tensor,       # (c, c) counts, row = target, column = prediction
) -> dict:           # name -> in [0, 1]; nan if no pixel was counted
    """The scores of Long et al. (2015, arXiv:1411.4038) and Dice, over all pixels together (not means over images):
    'miou' and 'dice', means over the classes that are predicted or present; 'pixel_accuracy', share of correct pixels;
    'class_accuracy', mean over the present classes of the share of their pixels that are correct; 'fw_iou', mean of the
    IoUs weighted by the classes' shares of the true pixels"""
    true,iou = cm.sum(1).double(),iou_from_confusion(cm)
    scores = dict(miou=iou.nanmean(), pixel_accuracy=cm.diag().sum()/true.sum(),
                  class_accuracy=class_accuracy_from_confusion(cm).nanmean(),
                  fw_iou=(true*iou.nan_to_num()).sum()/true.sum(), dice=dice_from_confusion(cm).nanmean())
    return {k: v.item() for k,v in scores.items()}

class _Confusion(Metric):
    """One of `confusion_scores`, in pixels of the network's output; (c, c) counts are summed on the device of the
    predictions; void is excluded"""
    def reset(self): self.counts = None
    def accumulate(self, learn):
        counts = _batch_counts(learn)
        self.counts = counts if self.counts is None else self.counts + counts
    @property
    def value(self): return None if self.counts is None else confusion_scores(self.counts)[self.name]

def _batch_counts(learn):
    "The counts of the batch, cached on its predictions for the other metrics of the learner"
    pred,y = learn.pred,learn.y
    targ,counts = getattr(pred, '_confusion', (None, None))
    if targ is not y:
        n,(h,w) = pred.shape[1],y.shape[-2:]
        labels = pred.detach().as_subclass(Tensor).max(1).indices   # four times faster than argmax(1) on a CPU
        m = max((h-pred.shape[-2])//2, 0)                         # a model without padding predicts the centre
        pred._confusion = y,confusion_counts(labels, y[..., m:h-m, m:w-m], n)
    return pred._confusion[1]

class MeanIoU(_Confusion):
    "Mean IoU over the classes that are predicted or present, over all pixels of the data set, as in PASCAL VOC"
    name = 'miou'

class PixelAccuracy(_Confusion):
    "Share of all pixels of the data set that are correct"
    name = 'pixel_accuracy'

class ClassAccuracy(_Confusion):
    "Mean over the present classes of the share of their pixels, in the whole data set, that are correct"
    name = 'class_accuracy'

class FrequencyIoU(_Confusion):
    "Mean of the IoUs over the whole data set, weighted by the classes' shares of the true pixels"
    name = 'fw_iou'

class MeanDice(_Confusion):
    "Mean Dice coefficient over the classes that are predicted or present, over all pixels of the data set"
    name = 'dice'
