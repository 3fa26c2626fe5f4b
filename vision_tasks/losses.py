"""Losses that fastai and torchvision lack. Those for several labels carry the threshold and the temperature, so that
both are exported with the learner"""
from __future__ import annotations
import math
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss
from .data.annotation import nearest

__all__ = ['MultilabelLoss', 'MultilabelBCE', 'MultilabelFocal', 'AsymmetricLoss', 'balanced_pos_weight',
           'MULTILABEL_LOSSES', 'PointLoss', 'LocalizationLoss']

class MultilabelLoss:
    """Base of the losses on (n, c) logits and (n, c) targets of 0 and 1. It also turns logits to probabilities,
    `sigmoid(logits/temperature)`, and probabilities to decisions, `prob > thresh`"""
    def __init__(self, reduction='mean', thresh=.5, temperature=1.):
        self.reduction,self.thresh,self.temperature = reduction,thresh,temperature

    def __repr__(self): return f"{type(self).__name__}(thresh={self.thresh}, temperature={self.temperature})"

    def each(self, x, y): raise NotImplementedError   # (n, c), (n, c) -> (n, c)

    def __call__(self, inp, targ):
        x,y = inp.as_subclass(Tensor),targ.as_subclass(Tensor)
        if x.shape != y.shape:
            raise ValueError(f"the model gives {tuple(x.shape)} logits for {tuple(y.shape)} targets: "
                             f"its last layer needs n_out={y.shape[-1]}")
        loss = self.each(x.float(), y.float())
        return loss if self.reduction == 'none' else getattr(loss, self.reduction)()

    @property
    def thresh(self):
        "What a probability must exceed: a float, or (c,) floats, one per class"
        return self._thresh
    @thresh.setter
    def thresh(self, v):
        v = torch.as_tensor(np.asarray(v.cpu() if isinstance(v, Tensor) else v, dtype=np.float64), dtype=torch.float32)
        if v.ndim > 1 or v.isnan().any():
            raise ValueError(f"thresh is a number or one number per class, none of them nan; got {v.tolist()}")
        self._thresh = v.item() if v.ndim == 0 else v

    def activation(self, x): return torch.sigmoid(x/self._per_class('temperature', self.temperature, x))
    def decodes(self, p):    return p > self._per_class('thresh', self.thresh, p)

    def _per_class(self, name, v, x):
        _check_length(name, v, x.shape[-1])
        return v.to(x.device) if isinstance(v, Tensor) else v

def _check_length(name, v, c):
    if isinstance(v, Tensor) and v.ndim and len(v) != c:
        raise ValueError(f"{name} has {len(v)} values, but there are {c} classes; "
                         "give one number, or one for each class in the order of dls.vocab")

class MultilabelBCE(MultilabelLoss):
    "Binary cross entropy of every label, on logits"
    def __init__(self,
        pos_weight=None, # None, a number, or (c,): how much more a present label counts than an absent one
        **kwargs,        # `reduction`, `thresh`, `temperature`
    ):
        super().__init__(**kwargs)
        self.pos_weight = None if pos_weight is None else torch.as_tensor(pos_weight, dtype=torch.float32)
    def each(self, x, y):
        if self.pos_weight is not None: _check_length('pos_weight', self.pos_weight, x.shape[-1])
        w = None if self.pos_weight is None else self.pos_weight.to(x.device)
        return F.binary_cross_entropy_with_logits(x, y, pos_weight=w, reduction='none')

class MultilabelFocal(MultilabelLoss):
    "Focal loss of every label (Lin et al., 2017, arXiv:1708.02002): what is already right counts less by (1-p)^gamma"
    def __init__(self,
        gamma:float=2.,   # 0 = binary cross entropy
        alpha:float=None, # in [0, 1]: weight of present labels, 1 - alpha of absent ones; None = no weights
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.gamma,self.alpha = gamma,alpha
    def each(self, x, y):
        ce = F.binary_cross_entropy_with_logits(x, y, reduction='none')
        # 1 - p of the right answer, from logits, so that it has a gradient where p is 1 within float32
        loss = ce*torch.sigmoid(torch.where(y > .5, -x, x))**self.gamma
        return loss if self.alpha is None else loss*torch.where(y > .5, self.alpha, 1-self.alpha)

class AsymmetricLoss(MultilabelLoss):
    """Asymmetric loss (Ridnik et al., 2020, arXiv:2009.14119): absent labels are focused harder than present ones, and
    those with a probability under `clip` are dropped. The paper sums over the labels; here `reduction` is over all
    entries"""
    def __init__(self,
        gamma_pos:float=0., # focus on present labels
        gamma_neg:float=4., # focus on absent labels
        clip:float=.05,     # the paper's margin m, in [0, 1)
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.gamma_pos,self.gamma_neg,self.clip = gamma_pos,gamma_neg,clip
    def each(self, x, y):
        p = torch.sigmoid(x)
        pm = (p - self.clip).clamp(min=0)                                    # eq. 5
        pos = F.logsigmoid(x)*(1-p)**self.gamma_pos
        neg = torch.log((1-pm).clamp(min=1e-8))*pm**self.gamma_neg           # eq. 6
        return -(y*pos + (1-y)*neg)

MULTILABEL_LOSSES = dict(bce=MultilabelBCE, focal=MultilabelFocal, asymmetric=AsymmetricLoss)

def balanced_pos_weight(
    annotations,      # list[Annotation] of the training set
    vocab,            # list of c names
    most:float=100.,  # no label counts more than this; a label without positives gets 1
) -> Tensor:          # (c,)
    "Pictures without each label for one with it: as `pos_weight` it makes present and absent labels weigh the same"
    has = torch.tensor([[o in a.labels for o in vocab] for a in annotations], dtype=torch.float32)
    has = has.reshape(-1, len(vocab)).sum(0)   # also where there is no annotation
    return torch.where(has > 0, (len(annotations)-has)/has.clamp(min=1), 1.).clamp(max=most)

# --- points

class PointLoss:
    """Mean over the marked coordinates of (b, k, 2) or (b, 2k) outputs and (b, k, 2) targets, in [-1, 1]. Targets of
    nan take no part; a batch of only such has loss 0"""
    def __init__(self,
        kind:str='mse',     # 'mse', 'l1', 'smooth_l1' (Huber's, with `beta`), 'wing' (Feng et al., 2018,
                            # arXiv:1711.06753)
        reduction='mean',   # or 'sum', 'none': (b, k, 2), 0 where not marked
        beta:float=.05,     # where 'smooth_l1' turns from square to straight
        w:float=.1, eps:float=.02, # of 'wing': range of its logarithm and its curvature, in units of the target
    ):
        if kind not in POINT_LOSSES:
            raise ValueError(f"no point loss is called {kind!r}{nearest(kind, POINT_LOSSES)}; "
                             f"there are {list(POINT_LOSSES)}")
        self.kind,self.reduction,self.beta,self.w,self.eps = kind,reduction,beta,w,eps

    def __repr__(self): return f"PointLoss({self.kind!r})"

    def __call__(self, inp, targ):
        y = targ.as_subclass(Tensor).float()
        x = inp.as_subclass(Tensor).float()
        if x.numel() != y.numel():
            raise ValueError(f"the model gives {x.numel()//len(x)} numbers a picture for {y.shape[1]} points: "
                             f"its last layer needs n_out={y[0].numel()}")
        x,on = x.view_as(y),~y.isnan()
        d = torch.where(on, x - y.nan_to_num(), 0.)      # no gradient comes from what is not marked
        loss = POINT_LOSSES[self.kind](self, d)
        if self.reduction == 'none': return loss
        return loss.sum() if self.reduction == 'sum' else loss.sum()/on.sum().clamp(min=1)

    def decodes(self, x): return x.view(len(x), -1, 2)

    def mse(self, d):       return d**2
    def l1(self, d):        return d.abs()
    def smooth_l1(self, d): return torch.where(d.abs() < self.beta, d**2/(2*self.beta), d.abs() - self.beta/2)
    def wing(self, d):      # eq. 5; C joins the two parts
        c = self.w - self.w*math.log(1 + self.w/self.eps)
        return torch.where(d.abs() < self.w, self.w*torch.log(1 + d.abs()/self.eps), d.abs() - c)

POINT_LOSSES = dict(mse=PointLoss.mse, l1=PointLoss.l1, smooth_l1=PointLoss.smooth_l1, wing=PointLoss.wing)

# --- one class and one box

class LocalizationLoss:
    """Mean over the pictures of: cross entropy of the class + `weight` * loss of the box, on (b, n_out + 4) outputs,
    class logits and then x1 y1 x2 y2 in [-1, 1]; (b,) class ids; and (b, 1, 4) boxes. A box of nan, or one that was
    pushed out of the picture, counts nothing"""
    def __init__(self,
        bbox:str='smooth_l1',  # 'l2', 'l1', 'smooth_l1' (Huber's, with `beta`), each the mean over the four numbers, or
                               # 'giou' (Rezatofighi et al., 2019, arXiv:1902.09630)
        weight:float=None,     # lambda: what the box counts beside the class; None = 10 for 'smooth_l1' and 'l1', 20
                               # for 'l2', 3 for 'giou', so that at first both weigh about the same
        reduction='mean',      # or 'sum', 'none': (b,)
        beta:float=.1,         # where 'smooth_l1' turns from square to straight, in units of the target
        n_out:int=None,        # number of classes, which the learner fills in; outputs of another width then raise
    ):
        if bbox not in BOX_LOSSES:
            raise ValueError(f"no box loss is called {bbox!r}{nearest(bbox, BOX_LOSSES)}; there are {list(BOX_LOSSES)}")
        f,usual = BOX_LOSSES[bbox]
        self.bbox,self.each,self.weight = bbox,f,usual if weight is None else weight
        self.reduction,self.beta,self.n_out = reduction,beta,n_out

    def __repr__(self): return f"LocalizationLoss({self.bbox!r}, weight={self.weight})"

    def __call__(self, inp, label, bbox):
        x,y = inp.as_subclass(Tensor).float(),bbox.as_subclass(Tensor).float().view(-1, 4).clamp(-1, 1)
        if self.n_out is not None and x.shape[1] != self.n_out + 4:
            raise ValueError(f"the model gives {x.shape[1]} numbers a picture; expected {self.n_out} class logits "
                             f"and 4 of a box, {self.n_out + 4} in all")
        ce = F.cross_entropy(x[:,:-4], label.as_subclass(Tensor), reduction='none')
        on = (y[:,2:] > y[:,:2]).all(1)                            # nan is not
        some = torch.where(on[:,None], y, y.new_tensor([-1., -1., 1., 1.]))
        loss = ce + self.weight*torch.where(on, self.each(self, x[:,-4:], some), 0.)
        return loss if self.reduction == 'none' else getattr(loss, self.reduction)()

    def activation(self, x): return torch.cat([x[:,:-4].softmax(1), x[:,-4:]], 1)
    def decodes(self, x): return x[:,:-4].argmax(1),x[:,None,-4:]

    def l2(self, x, y):        return ((x - y)**2).mean(1)
    def l1(self, x, y):        return (x - y).abs().mean(1)
    def smooth_l1(self, x, y): return F.smooth_l1_loss(x, y, beta=self.beta, reduction='none').mean(1)
    def giou(self, x, y):      return generalized_box_iou_loss(x, y)

BOX_LOSSES = dict(l2=(LocalizationLoss.l2, 20.), l1=(LocalizationLoss.l1, 10.), giou=(LocalizationLoss.giou, 3.),
                  smooth_l1=(LocalizationLoss.smooth_l1, 10.))   # with their usual weight
