"Scores: pure functions first, then the fastai `Metric`s that accumulate what these need"
from __future__ import annotations
import math
import numpy as np
import torch
from torch import Tensor
from fastai.learner import Metric
from fastai.torch_core import to_detach
from .data.annotation import AnnotationError
from .data.blocks import NO_OBJECT, marked_points, object_bbox, object_label, point_pairs
from .ops.boxes import paired_iou

__all__ = ['average_precision', 'binary_counts', 'f_beta', 'MultilabelAP', 'MultilabelF1', 'MultilabelAccuracy',
           'point_errors', 'normaliser_of', 'PointError', 'NME', 'PCK', 'LocalizationAccuracy', 'LocalizationIoU']

def average_precision(
    probs, # (n, c) scores
    targs, # (n, c) of 0 and 1
) -> Tensor: # (c,) float64 in [0, 1]; nan for a class without positives
    """Average precision of each class: the sum over the distinct scores, from the highest, of precision times the gain
    in recall, without interpolation (scikit-learn's convention; PASCAL VOC interpolates)"""
    p,t = torch.as_tensor(probs).as_subclass(Tensor),torch.as_tensor(targs).as_subclass(Tensor)
    if p.shape != t.shape or p.ndim != 2:
        raise ValueError(f"probs and targs are both (n, c), got {tuple(p.shape)} and {tuple(t.shape)}")
    if p.isnan().any():
        raise ValueError(f"{int(p.isnan().sum())} of {p.numel()} scores are nan: the model diverged; "
                         "lower the learning rate")
    if not len(p): return torch.full((p.shape[1],), torch.nan, dtype=torch.float64)
    p,order = p.sort(0, descending=True)
    hits = t.gather(0, order).double().cumsum(0)                              # (n, c)
    # only the last of several equal scores is a point of the curve
    last = torch.cat([p[1:] != p[:-1], torch.ones_like(p[:1], dtype=torch.bool)])
    precision = hits/torch.arange(1, len(p)+1, device=p.device)[:,None]
    before = torch.cat([torch.zeros_like(hits[:1]), torch.where(last, hits, 0).cummax(0).values[:-1]])
    n_pos = hits[-1]
    return torch.where(last, precision*(hits-before), 0).sum(0)/torch.where(n_pos > 0, n_pos, torch.nan)

def binary_counts(pred, targ) -> Tensor: # (n, c) bool, (n, c) of 0 and 1 -> (3, c) int64
    "True positives, false positives and false negatives of each class"
    pred,targ = pred.bool(),targ.bool()
    return torch.stack([(pred & targ).sum(0), (pred & ~targ).sum(0), (~pred & targ).sum(0)])

def f_beta(
    counts:Tensor, # (3, ...) true positives, false positives, false negatives
    beta:float=1., # weight of recall
) -> Tensor:       # (...) in [0, 1]; nan where there is neither a positive nor a prediction
    "F-beta of counts"
    tp,fp,fn = counts.double()
    return (1+beta**2)*tp/((1+beta**2)*tp + beta**2*fn + fp)

class _Multilabel(Metric):
    """Accumulates over a whole data set, on the CPU; `average` is 'macro' (mean over the classes) or 'micro' (all
    decisions pooled)"""
    def __init__(self, average='macro', name=None):
        if average not in ('macro', 'micro'): raise ValueError(f"average is 'macro' or 'micro', not {average!r}")
        self.average,self._name = average,name
    @property
    def name(self): return self._name or f'{self.prefix}_{self.average}'
    def _probs(self, learn):
        act = getattr(learn.loss_func, 'activation', torch.sigmoid)
        y = to_detach(learn.y, cpu=False).as_subclass(Tensor)
        return act(to_detach(learn.pred, cpu=False).as_subclass(Tensor).float()),y

class MultilabelAP(_Multilabel):
    """Average precision over the whole data set: 'macro' = mAP, the mean over the classes that have positives;
    'micro' = of all entries as one list"""
    prefix = 'map'
    def reset(self): self.probs,self.targs = [],[]
    def accumulate(self, learn):
        p,t = self._probs(learn)
        self.probs.append(p.cpu()); self.targs.append(t.cpu() > .5)
    @property
    def value(self):
        if not self.probs: return None
        p,t = torch.cat(self.probs),torch.cat(self.targs)
        if self.average == 'macro': return average_precision(p, t).nanmean().item()
        return average_precision(p.view(-1, 1), t.view(-1, 1)).item()

class MultilabelF1(_Multilabel):
    """F1 of the decisions at the learner's own threshold. 'macro' = mean over the classes that have positives or
    predictions (scikit-learn counts the others as 0), 'micro' = of the pooled counts"""
    prefix = 'f1'
    def reset(self): self.counts = 0
    def accumulate(self, learn):
        p,t = self._probs(learn)
        self.counts = self.counts + binary_counts(_decide(learn, p), t > .5).cpu()
    @property
    def value(self):
        if isinstance(self.counts, int): return None
        return f_beta(self.counts).nanmean().item() if self.average == 'macro' else f_beta(self.counts.sum(1)).item()

class MultilabelAccuracy(_Multilabel):
    """Share of right decisions, over all pictures and classes, at the learner's own threshold; fastai's
    `accuracy_multi` has a threshold of its own"""
    def __init__(self, name='accuracy_multi'): super().__init__('micro', name)
    def reset(self): self.right = self.n = 0
    def accumulate(self, learn):
        p,t = self._probs(learn)
        self.right += (_decide(learn, p) == (t > .5)).sum().item(); self.n += t.numel()
    @property
    def value(self): return self.right/self.n if self.n else None

def _decide(learn, probs):
    f = getattr(learn.loss_func, 'decodes', None)
    return f(probs) if f is not None else probs > .5

# --- points

def point_errors(pred, targ) -> Tensor: # (n, k, 2), (n, k, 2) with nan for what is not marked -> (n, k)
    "Distance of each point from its truth, in the unit of both; nan where it is not marked"
    return (torch.as_tensor(pred).double() - torch.as_tensor(targ).double()).norm(dim=-1)

def normaliser_of(
    a,              # Annotation with points
    by='diagonal',  # 'diagonal' of the picture; 'box': square root of the area of its box, or of the upright box around
                    # the marked points; two points, by index or name: their distance, as of the eyes; or a number of
                    # pixels
    vocab=(),       # names of the points, where `by` names two
) -> float:         # pixels; nan where it cannot be had, as when one of the two points is not marked
    "What an error in pixels is divided by. Raises `AnnotationError` where that is zero"
    p = marked_points(a).astype(float)
    if by == 'diagonal': d = math.hypot(*a.size)
    elif by == 'box':
        boxed = a.bboxes is not None and len(a.bboxes)
        lo,hi = (a.bboxes[0,:2], a.bboxes[0,2:]) if boxed else (_nan(np.nanmin, p), _nan(np.nanmax, p))
        d = math.sqrt(max(float(np.prod(np.asarray(hi, float)-lo)), 0.))
    elif isinstance(by, (tuple, list)) and len(by) == 2:
        (i,j), = point_pairs([by], vocab, 'by', len(p))
        d = float(np.linalg.norm(p[i]-p[j]))
    elif isinstance(by, (int, float)): d = float(by)
    else: raise ValueError(f"by is 'diagonal', 'box', two points or a number of pixels, not {by!r}")
    if d <= 0:
        raise AnnotationError(f"{a.path}: the normaliser {by!r} is {d:g} pixels; choose another, such as 'diagonal'")
    return d

def _nan(f, p): return f(p, axis=0) if not np.isnan(p).all() else np.full(2, np.nan)

class _InFilePoints(Metric):
    """Errors of points in pixels of the file, against the annotations of the DataLoader, wherever the network's input
    was resized or padded"""
    def __init__(self, by='diagonal'): self.by = by
    def reset(self): self.errors,self.norms,self.n = [],[],0
    def accumulate(self, learn):
        items = learn.items_of_batch(self.n, len(learn.pred))
        self.n += len(items)
        pred = learn.in_file(learn.probabilities(learn.pred), [a.size for a in items])
        self.errors.append(point_errors(pred, torch.from_numpy(np.stack([marked_points(a) for a in items]))))
        norms = [normaliser_of(a, self.by, learn.dls.vocab) for a in items]
        self.norms.append(torch.tensor(norms, dtype=torch.float64))
    @property
    def of(self):
        "What names the normaliser in the metric's name, where it is not the diagonal"
        if self.by == 'diagonal': return ''
        return f":{'-'.join(map(str, self.by)) if isinstance(self.by, (tuple, list)) else self.by}"
    def both(self): return (torch.cat(self.errors),torch.cat(self.norms)[:,None]) if self.errors else None

class PointError(_InFilePoints):
    "Mean distance over all marked points, in pixels of the file"
    name = 'error_px'
    @property
    def value(self): return None if self.both() is None else self.both()[0].nanmean().item()

class NME(_InFilePoints):
    "Normalised mean error: mean over all marked points of the distance divided by the picture's normaliser"
    @property
    def name(self): return f'nme{self.of}'
    @property
    def value(self):
        if self.both() is None: return None
        e,n = self.both()
        return (e/n).nanmean().item()

class PCK(_InFilePoints):
    "Share of the marked points that lie within `thresh` times the picture's normaliser (Yang & Ramanan, 2013)"
    def __init__(self, thresh:float=.05, by='diagonal'): super().__init__(by); self.thresh = thresh
    @property
    def name(self): return f'pck@{self.thresh:g}'.replace('0.', '.') + self.of
    @property
    def value(self):
        if self.both() is None: return None
        e,n = self.both()
        r = (e/n)[(e/n).isfinite()]
        return (r <= self.thresh).double().mean().item() if len(r) else float('nan')

# --- one class and one box

def localized(
    annotations, # list[Annotation], the truth, of one object or none
    answers,     # list[Annotation] of the same pictures, as the learner gives them
):               # (n,) bool: the class is right; (n,) IoU, 0 where the answer has no box, nan where the truth has none
    "How far each answer is right, in pixels of the file"
    box   = lambda o: torch.from_numpy(o[0] if len(o) else np.full(4, np.nan, np.float32)).double()
    truth = torch.stack([box(object_bbox(a)) for a in annotations])
    iou   = paired_iou(torch.stack([box(a.bboxes) for a in answers]), truth)
    right = torch.tensor([object_label(a) == (b.labels or [NO_OBJECT])[0] for a,b in zip(annotations, answers)])
    return right,torch.where(truth.isnan().any(1), torch.nan, iou.nan_to_num())

class _Localized(Metric):
    "Answers in pixels of the file, against the annotations of the DataLoader"
    def reset(self): self.right,self.ious,self.n = [],[],0
    def accumulate(self, learn):
        items = learn.items_of_batch(self.n, len(learn.pred))
        self.n += len(items)
        probs = learn.probabilities(to_detach(learn.pred))
        right,iou = localized(items, learn.to_annotations(probs, [(a.path, a.size) for a in items], None))
        self.right.append(right); self.ious.append(iou)

class LocalizationAccuracy(_Localized):
    """Share of the pictures whose class is right and, with `iou`, whose box too, by an IoU of at least that; a picture
    without an object has no box to be wrong (ImageNet's localization counts such as errors, at .5)"""
    def __init__(self, iou:float=None): self.iou = iou
    @property
    def name(self): return 'accuracy' if self.iou is None else f'accuracy@{self.iou:g}'.replace('0.', '.')
    @property
    def value(self):
        if not self.n: return None
        right,iou = torch.cat(self.right),torch.cat(self.ious)
        if self.iou is not None: right = right & (iou.isnan() | (iou >= self.iou))
        return right.double().mean().item()

class LocalizationIoU(_Localized):
    "Mean IoU over the pictures that have a box, in pixels of the file; an answer without a box counts 0"
    name = 'mean_iou'
    @property
    def value(self): return torch.cat(self.ious).nanmean().item() if self.n else None
