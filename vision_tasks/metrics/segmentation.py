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

# --- a class for every pixel

@checked(pred=NUMBERS, targ=NUMBERS, n=N_CLASSES, void=whole(0, 2**15, what="a value"))
def confusion_counts(
    pred,          # class indices of any shape and integer dtype
    targ,          # as many
    n:int,         # number of classes
    void:int=VOID, # the value in `targ`, and in `pred` where it is no class, of what is not counted
) -> Tensor:       # (n, n) int64, row = target, column = prediction; on the device of `pred`
    "How many pixels of each class were taken for which. Raises for values that are neither a class nor void"
    p,t = torch.as_tensor(pred),torch.as_tensor(targ)
    if p.shape != t.shape or p.is_floating_point() or t.is_floating_point():
        raise ValueError(f"expected class indices of one shape, got {tuple(p.shape)} {p.dtype} (predictions) and "
                         f"{tuple(t.shape)} {t.dtype} (targets)")
    if not p.numel(): return torch.zeros(n, n, dtype=torch.int64, device=p.device)
    p,t = (o.as_subclass(Tensor).flatten().to(o.dtype if o.dtype in _COUNTABLE else torch.int64) for o in (p, t))
    rows = max(n, void+1)
    # (4,), read at once, for a GPU has to wait for each
    p_min,p_max,t_min,t_max = torch.stack([o.long() for x in (p, t) for o in x.aminmax()]).tolist()
    if p_max == void >= n:
        out = p == void
        p,t = p.masked_fill(out, 0),t.long().masked_fill(out, void)
        p_max = int(p.max())
    if p_min < 0 or p_max >= n: raise _strange('prediction', p, n, void)
    if t_min < 0 or t_max >= rows: raise _strange('target', t, n, void)
    dtype = torch.int16 if rows*n < 2**15 else torch.int32 if rows*n < 2**31 else torch.int64
    # void has a row of its own, which is faster than to pick what is not void
    table = torch.bincount(t.to(dtype, copy=True).mul_(n).add_(p), minlength=rows*n).view(rows, n)
    table[void] = 0
    if rows > n and table[n:].any(): raise _strange('target', t, n, void)
    return table[:n].clone()

_COUNTABLE = torch.uint8,torch.int8,torch.int16,torch.int32,torch.int64   # not the other unsigned ones, nor bool

def _strange(what, o, n, void):
    values = [v for v in o.unique().tolist() if not 0 <= v < n and v != void]
    return ValueError(f"the {what} holds {values[:8]}; expected class indices 0 to {n-1}, or {void} for void: "
                      "is n the number of the classes, and are these masks of them?")

@checked(cm=COUNTS)
def iou_from_confusion(
    cm:Tensor, # (c, c) counts, row = target, column = prediction
) -> Tensor:   # (c,) float64 in [0, 1]; nan for a class that is neither predicted nor there
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
    "Share of the pixels of each class that are right (recall)"
    cm = cm.double()
    return cm.diag()/cm.sum(1)

@checked(cm=COUNTS)
def confusion_scores(
    cm:Tensor,       # (c, c) counts, row = target, column = prediction
) -> dict:           # name -> in [0, 1]; nan where nothing was counted
    """The scores of Long et al. (2015, arXiv:1411.4038) and Dice, over all pixels counted, those of a data set, not the
    mean over pictures: 'miou' and 'dice', mean over the classes that are predicted or there; 'pixel_accuracy', share of
    the pixels that are right; 'class_accuracy', mean over the classes that are there of the share of their pixels that
    are right; 'fw_iou', mean of the IoU by the classes' share of the true pixels"""
    true,iou = cm.sum(1).double(),iou_from_confusion(cm)
    scores = dict(miou=iou.nanmean(), pixel_accuracy=cm.diag().sum()/true.sum(),
                  class_accuracy=class_accuracy_from_confusion(cm).nanmean(),
                  fw_iou=(true*iou.nan_to_num()).sum()/true.sum(), dice=dice_from_confusion(cm).nanmean())
    return {k: v.item() for k,v in scores.items()}

class _Confusion(Metric):
    """One of `confusion_scores`, in pixels of the network's output: counts are summed up, (c, c) of them, on the
    predictions' device; void is left out"""
    def reset(self): self.counts = None
    def accumulate(self, learn):
        counts = _batch_counts(learn)
        self.counts = counts if self.counts is None else self.counts + counts
    @property
    def value(self): return None if self.counts is None else confusion_scores(self.counts)[self.name]

def _batch_counts(learn):
    "The counts of the batch; they stay at its predictions, for the learner's other metrics"
    pred,y = learn.pred,learn.y
    targ,counts = getattr(pred, '_confusion', (None, None))
    if targ is not y:
        n,(h,w) = pred.shape[1],y.shape[-2:]
        said = pred.detach().as_subclass(Tensor).max(1).indices   # on a CPU four times faster than argmax(1)
        m = max((h-pred.shape[-2])//2, 0)                         # a net without padding answers for the centre
        pred._confusion = y,confusion_counts(said, y[..., m:h-m, m:w-m], n)
    return pred._confusion[1]

class MeanIoU(_Confusion):
    "Mean IoU over the classes that are predicted or there, of the whole data set, as PASCAL VOC counts it"
    name = 'miou'

class PixelAccuracy(_Confusion):
    "Share of all pixels of the data set that are right"
    name = 'pixel_accuracy'

class ClassAccuracy(_Confusion):
    "Mean over the classes that are there of the share of their pixels, of the whole data set, that are right"
    name = 'class_accuracy'

class FrequencyIoU(_Confusion):
    "Mean of the classes' IoU of the whole data set, each by its share of the true pixels"
    name = 'fw_iou'

class MeanDice(_Confusion):
    "Mean Dice coefficient over the classes that are predicted or there, of the whole data set"
    name = 'dice'
