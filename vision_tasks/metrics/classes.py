"Metrics of one class per image: pure functions first, then the fastai `Metric`s that accumulate for them"
from __future__ import annotations
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from fastai.learner import Metric
from ..arguments import FLAG, TEXT, checked, choice, numbers, whole
from ..data.targets import REJECTED
from .labels import f_beta

__all__ = ['class_counts', 'classification_confusion', 'top_confidence', 'ClassificationAccuracy', 'ClassificationF1',
           'ClassificationCoverage']

IDS = numbers((None,), what="(n,) class ids, whole numbers", types='iu')
C   = whole(1, 2**15, what="a number of classes")
PROBS = numbers((None, None), what="(n, c) probabilities", types='f')

def _ids(pred, targ, c):
    "`pred` and `targ` as (n,) int64 tensors, checked"
    p,t = (torch.as_tensor(np.asarray(o) if isinstance(o, (list, tuple)) else o).as_subclass(Tensor).long().cpu()
           for o in (pred, targ))
    if p.shape != t.shape: raise ValueError(f"pred and targ are both (n,), got {tuple(p.shape)} and {tuple(t.shape)}")
    for name,o,low in (('pred', p, -1), ('targ', t, 0)):
        bad = o[(o < low) | (o >= c)]
        if len(bad): raise ValueError(f"{name} holds {bad[0].item()}; expected ids of {c} classes, 0 to {c-1}"
                                      f"{', or -1 for rejected' if low else ''}")
    return p,t

@checked(pred=IDS, targ=IDS, c=C)
def class_counts(
    pred,    # (n,) predicted class ids; -1 = rejected, which is no prediction
    targ,    # (n,) true class ids
    c:int,   # number of classes
) -> Tensor: # (3, c) int64, as `f_beta` takes them
    "True positives, false positives and false negatives of each class"
    p,t = _ids(pred, targ, c)
    tp,said,true = (torch.bincount(o, minlength=c) for o in (t[p == t], p[p >= 0], t))
    return torch.stack([tp, said-tp, true-tp])

@checked(pred=IDS, targ=IDS)
def classification_confusion(
    pred,          # (n,) predicted class ids; -1 = rejected
    targ,          # (n,) true class ids
    vocab,         # list of c class names
) -> pd.DataFrame: # (c, c) numbers of images, row = true class, column = predicted class
    "The confusion matrix; where images are rejected, a last column `REJECTED` counts them"
    vocab = list(vocab)
    c = len(vocab)
    p,t = _ids(pred, targ, c)
    cm = torch.bincount(t*(c+1) + torch.where(p < 0, c, p), minlength=c*(c+1)).view(c, c+1).numpy()
    df = pd.DataFrame(cm, index=vocab, columns=[*vocab, REJECTED])
    return df if cm[:,-1].any() else df.iloc[:,:-1]

@checked(probs=PROBS, targs=IDS)
def top_confidence(
    probs, # (n, c) in [0, 1]
    targs, # (n,) true class ids
):         # (n,) highest probability of each image; (n,) bool: its class is correct
    "What `reliability` and `calibration_error` compare: the confidence in the predicted class, and whether it is right"
    p = torch.as_tensor(probs).as_subclass(Tensor)
    conf,idx = p.max(1)
    _,t = _ids(idx, targs, p.shape[1])
    return conf,(idx.cpu() == t).to(conf.device)

class _Classification(Metric):
    "Accumulates the counts of a whole data set, on the CPU, at the learner's own threshold"
    def reset(self): self.counts = self.n = 0
    def accumulate(self, learn):
        loss,x = learn.loss_func,learn.pred.detach().as_subclass(Tensor).float()
        if not hasattr(loss, 'decodes'): pred = x.argmax(1)
        else: pred = loss.decodes(getattr(loss, 'activation', lambda o: o.softmax(1))(x))
        t = learn.y.as_subclass(Tensor)
        self.counts = self.counts + class_counts.unchecked(pred.as_subclass(Tensor), t, x.shape[1])
        self.n += len(t)
    @property
    def value(self): return self._score(*self.counts) if self.n else None

class ClassificationAccuracy(_Classification):
    """Share of the images whose class is predicted correctly, at the learner's threshold. Of all images, so that a
    rejected one is an error; or with `accepted` of those that are not rejected, nan where all are"""
    @checked(accepted=FLAG, name=TEXT)
    def __init__(self,
        accepted:bool=False, # of the images that are not rejected alone
        name:str=None,       # None (default): 'accuracy' or 'accuracy_accepted'
    ):
        self.accepted,self._name = accepted,name
    @property
    def name(self): return self._name or ('accuracy_accepted' if self.accepted else 'accuracy')
    def _score(self, tp, fp, fn):
        n = (tp+fp).sum() if self.accepted else self.n
        return float(tp.sum()/n) if n else float('nan')

class ClassificationF1(_Classification):
    """F1 at the learner's threshold, where a rejected image is no prediction: a false negative of its class. 'macro' is
    the mean over the classes that occur in the ground truth (scikit-learn counts the others too), 'micro' that of the
    pooled counts, which is the accuracy where none is rejected"""
    @checked(average=choice('macro', 'micro'), name=TEXT)
    def __init__(self,
        average:str='macro', # or 'micro'
        name:str=None,       # None (default): 'f1_macro' or 'f1_micro'
    ):
        self.average,self._name = average,name
    @property
    def name(self): return self._name or f'f1_{self.average}'
    def _score(self, tp, fp, fn):
        if self.average == 'micro': return f_beta(torch.stack([tp, fp, fn]).sum(1)).item()
        return f_beta(torch.stack([tp, fp, fn]))[tp+fn > 0].mean().item()

class ClassificationCoverage(_Classification):
    "Share of the images that are not rejected, at the learner's threshold; 1 where there is none"
    @checked(name=TEXT)
    def __init__(self,
        name:str='coverage', # in the log and in `evaluate`
    ):
        self._name = name
    @property
    def name(self): return self._name
    def _score(self, tp, fp, fn): return float((tp+fp).sum()/self.n)
