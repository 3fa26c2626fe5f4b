"Metrics of several labels per image: pure functions first, then the fastai `Metric`s that accumulate their input"
from __future__ import annotations
import pandas as pd
import torch
from torch import Tensor
from fastai.learner import Metric
from ..arguments import TEXT, Kind, checked, choice, numbers, whole

__all__ = ['average_precision', 'binary_counts', 'f_beta', 'multilabel_confusion', 'label_confusion', 'MultilabelAP',
           'MultilabelF1', 'MultilabelAccuracy']

NUMBERS = numbers(what="an array, a tensor or a list of numbers")
_TENSOR  = Kind("a tensor (n, c)", lambda o: isinstance(o, Tensor) and o.ndim >= 1 and not o.is_complex())
N_CLASSES = whole(1, 2**15, what="a number of classes")
COUNTS  = Kind("a tensor (c, c) of counts, row = target, column = prediction", lambda o: isinstance(o, Tensor) and
               o.ndim == 2 and o.shape[0] == o.shape[1] and not o.is_complex() and bool((o >= 0).all()))

@checked(probs=NUMBERS, targs=NUMBERS)
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
def binary_counts(
    pred,    # (n, c) bool: which labels are predicted
    targ,    # (n, c) of 0 and 1
) -> Tensor: # (3, c) int64: true positives, false positives, false negatives
    "True positives, false positives and false negatives of each class"
    if pred.shape != targ.shape:
        raise ValueError(f"pred and targ: expected one shape (n, c), got {tuple(pred.shape)} and {tuple(targ.shape)}")
    pred,targ = pred.bool(),targ.bool()
    return torch.stack([(pred & targ).sum(0), (pred & ~targ).sum(0), (~pred & targ).sum(0)])

@checked(counts=Kind("a tensor (3, ...) of true positives, false positives, false negatives", lambda o:
                     isinstance(o, Tensor) and o.ndim >= 1 and len(o) == 3 and not o.is_complex()))
def f_beta(
    counts:Tensor, # (3, ...) true positives, false positives, false negatives
    beta:float=1., # weight of recall over precision, above 0
) -> Tensor:       # (...) in [0, 1]; nan where there is neither a positive nor a prediction
    "F-beta from counts"
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

@checked(pred=NUMBERS, targ=NUMBERS)
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

@checked(pred=NUMBERS, targ=NUMBERS)
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
    "Base of the metrics that accumulate over a whole data set, on the CPU"
    @checked(average=choice('macro', 'micro'), name=TEXT)
    def __init__(self,
        average='macro', # 'macro': mean over the classes; 'micro': all entries pooled
        name=None,       # column of the metric; None (default): prefix and average, such as 'map_macro'
    ):
        self.average,self._name = average,name
    @property
    def name(self): return self._name or f'{self.prefix}_{self.average}'
    def _probs(self, learn):
        act = getattr(learn.loss_func, 'activation', torch.sigmoid)
        return act(learn.pred.detach().as_subclass(Tensor).float()),learn.y.as_subclass(Tensor)

class MultilabelAP(_Multilabel):
    """Average precision over the whole data set. 'macro': mAP, the mean over the classes with positives; 'micro': of
    all entries as one list"""
    prefix = 'map'
    def reset(self): self.probs,self.targs = [],[]
    def accumulate(self, learn, # the learner, after a batch: its `pred`, `y` and `loss_func`
    ):
        p,t = self._probs(learn)
        self.probs.append(p.cpu()); self.targs.append(t.cpu() > .5)
    @property
    def value(self):
        if not self.probs: return None
        p,t = torch.cat(self.probs),torch.cat(self.targs)
        if self.average == 'macro': return average_precision(p, t).nanmean().item()
        return average_precision(p.view(-1, 1), t.view(-1, 1)).item()

class MultilabelF1(_Multilabel):
    """F1 at the threshold of the learner. 'macro': mean over the classes with positives or predictions (scikit-learn
    counts the others as 0); 'micro': of the pooled counts"""
    prefix = 'f1'
    def reset(self): self.counts = 0
    def accumulate(self, learn, # the learner, after a batch: its `pred`, `y` and `loss_func`
    ):
        p,t = self._probs(learn)
        self.counts = self.counts + binary_counts(_decide(learn, p), t > .5).cpu()
    @property
    def value(self):
        if isinstance(self.counts, int): return None
        return f_beta(self.counts).nanmean().item() if self.average == 'macro' else f_beta(self.counts.sum(1)).item()

class MultilabelAccuracy(_Multilabel):
    """Share of correct decisions over all images and classes, at the threshold of the learner (fastai's
    `accuracy_multi` has a threshold of its own)"""
    @checked(name=TEXT)
    def __init__(self, name='accuracy_multi', # column of the metric
    ):
        super().__init__('micro', name)
    def reset(self): self.right = self.n = 0
    def accumulate(self, learn, # the learner, after a batch: its `pred`, `y` and `loss_func`
    ):
        p,t = self._probs(learn)
        self.right += (_decide(learn, p) == (t > .5)).sum().item(); self.n += t.numel()
    @property
    def value(self): return self.right/self.n if self.n else None

def _decide(learn, probs):
    f = getattr(learn.loss_func, 'decodes', None)
    return f(probs) if f is not None else probs > .5
