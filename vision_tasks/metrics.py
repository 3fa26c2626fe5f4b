"Scores: pure functions first, then the fastai `Metric`s that accumulate what these need"
from __future__ import annotations
import math
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from fastai.learner import Metric
from .arguments import TEXT, Kind, checked, choice, either, is_whole, nearest, number, numbers, whole
from .data.annotation import AnnotationError
from .data.blocks import NO_OBJECT, marked_points, object_bbox, object_label, point_pairs
from .data.masks import VOID
from .ops.boxes import paired_iou

__all__ = ['average_precision', 'binary_counts', 'f_beta', 'multilabel_confusion', 'label_confusion', 'MultilabelAP',
           'MultilabelF1', 'MultilabelAccuracy', 'point_errors', 'normaliser_of', 'PointError', 'NME', 'PCK',
           'localization_confusion', 'LocalizationAccuracy', 'LocalizationIoU',
           'confusion_counts', 'confusion_scores', 'iou_from_confusion', 'dice_from_confusion',
           'class_accuracy_from_confusion', 'MeanIoU', 'PixelAccuracy', 'ClassAccuracy', 'FrequencyIoU', 'MeanDice']

_NUMBERS = numbers(what="an array, a tensor or a list of numbers")
_TENSOR  = Kind("a tensor (n, c)", lambda o: isinstance(o, Tensor) and o.ndim >= 1 and not o.is_complex())
_CLASSES = whole(1, 2**15, what="a number of classes")
_COUNTS  = Kind("a tensor (c, c) of counts, row = target, column = prediction", lambda o: isinstance(o, Tensor) and
                o.ndim == 2 and o.shape[0] == o.shape[1] and not o.is_complex() and bool((o >= 0).all()))

@checked(probs=_NUMBERS, targs=_NUMBERS)
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
    if ((t != 0) & (t != 1)).any(): raise ValueError("targs holds values other than 0 and 1; expected one-hot targets")
    if not len(p): return torch.full((p.shape[1],), torch.nan, dtype=torch.float64)
    p,order = p.sort(0, descending=True)
    hits = t.gather(0, order).double().cumsum(0)                              # (n, c)
    # only the last of several equal scores is a point of the curve
    last = torch.cat([p[1:] != p[:-1], torch.ones_like(p[:1], dtype=torch.bool)])
    precision = hits/torch.arange(1, len(p)+1, device=p.device)[:,None]
    before = torch.cat([torch.zeros_like(hits[:1]), torch.where(last, hits, 0).cummax(0).values[:-1]])
    n_pos = hits[-1]
    return torch.where(last, precision*(hits-before), 0).sum(0)/torch.where(n_pos > 0, n_pos, torch.nan)

@checked(pred=_TENSOR, targ=_TENSOR)
def binary_counts(pred, targ) -> Tensor: # (n, c) bool, (n, c) of 0 and 1 -> (3, c) int64
    "True positives, false positives and false negatives of each class"
    if pred.shape != targ.shape:
        raise ValueError(f"pred and targ: expected one shape (n, c), got {tuple(pred.shape)} and {tuple(targ.shape)}")
    pred,targ = pred.bool(),targ.bool()
    return torch.stack([(pred & targ).sum(0), (pred & ~targ).sum(0), (~pred & targ).sum(0)])

@checked(counts=Kind("a tensor (3, ...) of true positives, false positives, false negatives", lambda o:
                     isinstance(o, Tensor) and o.ndim >= 1 and len(o) == 3 and not o.is_complex()))
def f_beta(
    counts:Tensor, # (3, ...) true positives, false positives, false negatives
    beta:float=1., # weight of recall
) -> Tensor:       # (...) in [0, 1]; nan where there is neither a positive nor a prediction
    "F-beta of counts"
    tp,fp,fn = counts.double()
    return (1+beta**2)*tp/((1+beta**2)*tp + beta**2*fn + fp)

def _decisions(pred, targ, vocab):
    "`pred` and `targ` as (n, c) bool tensors, and the c class names, checked"
    p,t = torch.as_tensor(pred).as_subclass(Tensor),torch.as_tensor(targ).as_subclass(Tensor)
    if p.shape != t.shape or p.ndim != 2:
        raise ValueError(f"pred and targ are both (n, c), got {tuple(p.shape)} and {tuple(t.shape)}")
    for name,o in (('pred', p), ('targ', t)):
        if o.dtype != torch.bool and ((o != 0) & (o != 1)).any():
            raise ValueError(f"{name} holds values other than 0 and 1; expected decisions, such as probs > thresh")
    vocab = [str(i) for i in range(p.shape[1])] if vocab is None else list(vocab)
    if len(vocab) != p.shape[1]: raise ValueError(f"vocab has {len(vocab)} names for {p.shape[1]} classes")
    return p.bool(),t.bool(),vocab

@checked(pred=_NUMBERS, targ=_NUMBERS)
def multilabel_confusion(
    pred,            # (n, c) decisions, bool or 0 and 1: which labels are predicted for each image
    targ,            # (n, c) ground truth, bool or 0 and 1
    vocab=None,      # list of c class names; None = '0', '1', ...
) -> pd.DataFrame:   # a row for each class: label, then numbers of images tn, fp, fn, tp
    """The 2 x 2 confusion matrix of each class: true negatives, false positives, false negatives and true positives,
    the order of scikit-learn's `multilabel_confusion_matrix(targ, pred).reshape(-1, 4)`"""
    p,t,vocab = _decisions(pred, targ, vocab)
    tp,fp,fn = binary_counts(p, t).cpu().numpy()
    return pd.DataFrame(dict(label=vocab, tn=len(p)-tp-fp-fn, fp=fp, fn=fn, tp=tp))

@checked(pred=_NUMBERS, targ=_NUMBERS)
def label_confusion(
    pred,            # (n, c) decisions, bool or 0 and 1: which labels are predicted for each image
    targ,            # (n, c) ground truth, bool or 0 and 1
    vocab=None,      # list of c class names; None = '0', '1', ...
) -> pd.DataFrame:   # (c, c) in [0, 1], row = true label, column = predicted label
    """How often A is predicted where B is true: in row B and column A, the share of the images with label B and without
    label A for which A is predicted. On the diagonal the share of the images with the label for which it is predicted
    (recall). nan where there is no such image. Rows do not sum to 1, since an image may have several labels"""
    p,t,vocab = _decisions(pred, targ, vocab)
    p,on,off = p.cpu().double(),t.cpu().double(),(~t).cpu().double()
    n,hits = on.T@off,on.T@(off*p)   # (c, c) images with B and without A; those of them for which A is predicted
    n.diagonal().copy_(on.sum(0)); hits.diagonal().copy_((on*p).sum(0))
    return pd.DataFrame((hits/n).numpy(), index=vocab, columns=vocab)

class _Multilabel(Metric):
    """Accumulates over a whole data set, on the CPU; `average` is 'macro' (mean over the classes) or 'micro' (all
    decisions pooled)"""
    @checked(average=choice('macro', 'micro'), name=TEXT)
    def __init__(self, average='macro', name=None):
        self.average,self._name = average,name
    @property
    def name(self): return self._name or f'{self.prefix}_{self.average}'
    def _probs(self, learn):
        act = getattr(learn.loss_func, 'activation', torch.sigmoid)
        return act(learn.pred.detach().as_subclass(Tensor).float()),learn.y.as_subclass(Tensor)

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
    @checked(name=TEXT)
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

_POINTS = numbers((..., 2), what="points (n, k, 2) as an array, a tensor or a list")

@checked(pred=_POINTS, targ=_POINTS)
def point_errors(pred, targ) -> Tensor: # (n, k, 2), (n, k, 2) with nan for what is not marked -> (n, k)
    "Distance of each point from its truth, in the unit of both; nan where it is not marked"
    p,t = torch.as_tensor(pred).double(),torch.as_tensor(targ).double()
    if all(n == m or 1 in (n, m) for n,m in zip(p.shape[::-1], t.shape[::-1])): return (p - t).norm(dim=-1)
    raise ValueError(f"pred and targ: expected (n, k, 2), or one of either for all of the other, got {tuple(p.shape)} "
                     f"and {tuple(t.shape)}")

BY = either(choice('diagonal', 'box'), number(0, 1e9, open=True, what="a number of pixels"),
            Kind("two points, by index or name", lambda o: isinstance(o, (tuple, list)) and len(o) == 2 and
                 all(isinstance(v, str) or is_whole(v) for v in o)))

@checked(by=BY)
def normaliser_of(
    a,              # Annotation with points
    by='diagonal',  # 'diagonal' of the picture; 'box': square root of the area of its box, or of the upright box around
                    # the marked points; two points, by index or name: their distance, as of the eyes; or a number of
                    # pixels
    vocab=(),       # names of the points, where `by` names two
) -> float:         # pixels; nan where it cannot be had, as when one of the two points is not marked
    "What an error in pixels is divided by. Raises `AnnotationError` where that is zero"
    if a.points is None: raise AnnotationError(f"{a.path}: the annotation has no points")
    p = marked_points(a).astype(float)
    if by == 'diagonal': d = math.hypot(*a.size)
    elif by == 'box':
        boxed = a.bboxes is not None and len(a.bboxes)
        lo,hi = (a.bboxes[0,:2], a.bboxes[0,2:]) if boxed else (_nan(np.nanmin, p), _nan(np.nanmax, p))
        d = math.sqrt(max(float(np.prod(np.asarray(hi, float)-lo)), 0.))
    elif isinstance(by, (tuple, list)) and len(by) == 2:
        (i,j), = point_pairs([by], vocab, 'by', len(p))
        d = float(np.linalg.norm(p[i]-p[j]))
    else: d = float(by)
    if d <= 0:
        raise AnnotationError(f"{a.path}: the normaliser {by!r} is {d:g} pixels; choose another, such as 'diagonal'")
    return d

def _nan(f, p): return f(p, axis=0) if not np.isnan(p).all() else np.full(2, np.nan)

class _InFilePoints(Metric):
    """Errors of points in pixels of the file, against the annotations of the DataLoader, wherever the network's input
    was resized or padded"""
    @checked(by=BY)
    def __init__(self, by='diagonal'): self.by = by
    def reset(self): self.errors,self.norms,self.n = [],[],0
    def accumulate(self, learn):
        items = learn.items_of_batch(self.n, len(learn.pred))
        if not items: return
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
    @checked(thresh=number(0, open=True))
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
    iou   = paired_iou.unchecked(torch.stack([box(a.bboxes) for a in answers]), truth)
    right = torch.tensor([object_label(a) == (b.labels or [NO_OBJECT])[0] for a,b in zip(annotations, answers)])
    return right,torch.where(truth.isnan().any(1), torch.nan, iou.nan_to_num())

@checked()
def localization_confusion(
    annotations,     # list[Annotation], the ground truth, with one object each or none
    predictions,     # list[Annotation] of the same images in the same order, as `annotate` gives them
    vocab=None,      # list of class names; None = all that occur, sorted
) -> pd.DataFrame:   # numbers of images, row = true class, column = predicted class
    """Which class is predicted for which; boxes are not compared. `NO_OBJECT` is the class of images without an object,
    and of predictions without one; it is added as the last class where it occurs and is not in `vocab`. Raises
    `ValueError` for a class that is not in `vocab`, `AnnotationError` for an image with several objects"""
    if len(annotations) != len(predictions): raise ValueError(
        f"{len(annotations)} annotations but {len(predictions)} predictions; expected one for each image")
    true,pred = [object_label(a) for a in annotations],[(a.labels or [NO_OBJECT])[0] for a in predictions]
    names = sorted({*true, *pred} - {NO_OBJECT}) if vocab is None else list(vocab)
    if NO_OBJECT not in names and NO_OBJECT in {*true, *pred}: names.append(NO_OBJECT)
    unknown = sorted({*true, *pred} - {*names})
    if unknown: raise ValueError(f"class {unknown[0]!r} is not in the vocab {names}{nearest(unknown[0], names)}")
    ids = {o: i for i,o in enumerate(names)}
    counts = np.zeros((len(names),)*2, int)
    np.add.at(counts, ([ids[o] for o in true], [ids[o] for o in pred]), 1)
    return pd.DataFrame(counts, index=names, columns=names)

class _Localized(Metric):
    "Answers in pixels of the file, against the annotations of the DataLoader"
    def reset(self): self.right,self.ious,self.n = [],[],0
    def accumulate(self, learn):
        items = learn.items_of_batch(self.n, len(learn.pred))
        if not items: return
        self.n += len(items)
        probs = learn.probabilities(learn.pred.detach())
        right,iou = localized(items, learn.to_annotations(probs, [(a.path, a.size) for a in items], None))
        self.right.append(right); self.ious.append(iou)

class LocalizationAccuracy(_Localized):
    """Share of the pictures whose class is right and, with `iou`, whose box too, by an IoU of at least that; a picture
    without an object has no box to be wrong (ImageNet's localization counts such as errors, at .5)"""
    @checked()
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

# --- a class for every pixel

@checked(pred=_NUMBERS, targ=_NUMBERS, n=_CLASSES, void=whole(0, 2**15, what="a value"))
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

@checked(cm=_COUNTS)
def iou_from_confusion(
    cm:Tensor, # (c, c) counts, row = target, column = prediction
) -> Tensor:   # (c,) float64 in [0, 1]; nan for a class that is neither predicted nor there
    "Intersection over union of each class"
    cm = cm.double()
    return cm.diag()/(cm.sum(0) + cm.sum(1) - cm.diag())

@checked(cm=_COUNTS)
def dice_from_confusion(cm:Tensor) -> Tensor: # (c, c) -> (c,); nan for a class that is neither predicted nor there
    "Dice coefficient (F1) of each class"
    cm = cm.double()
    return 2*cm.diag()/(cm.sum(0) + cm.sum(1))

@checked(cm=_COUNTS)
def class_accuracy_from_confusion(cm:Tensor) -> Tensor: # (c, c) -> (c,); nan for a class that is not there
    "Share of the pixels of each class that are right (recall)"
    cm = cm.double()
    return cm.diag()/cm.sum(1)

@checked(cm=_COUNTS)
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
