"""Losses that fastai and torchvision lack, or have without void. Those for several labels carry the threshold and the
temperature, so that both are exported with the learner"""
from __future__ import annotations
import math
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss
from .arguments import (FRACTION, LEAST_THRESH, POSITIVE, WIDTH_HEIGHT, Kind, checked, choice, either, nearest,
                        number, numbers, whole)
from .data.annotation import AnnotationError
from .data.blocks import class_mask
from .data.masks import VOID
from .models.layers import zero_loss

__all__ = ['MultilabelLoss', 'MultilabelBCE', 'MultilabelFocal', 'AsymmetricLoss', 'balanced_pos_weight',
           'MULTILABEL_LOSSES', 'PointLoss', 'LocalizationLoss', 'SegmentationLoss', 'SegmentationCE',
           'SegmentationFocal', 'SegmentationDice', 'SegmentationCEDice', 'BorderCE', 'SEGMENTATION_LOSSES',
           'class_weights', 'border_weights', 'crop_target', 'DetectionLoss']

def loss_by_name(o, losses, shape):
    "A loss of `losses` where `o` is the name of one; anything else as it is; `shape`, of the logits, is for the error"
    if not isinstance(o, str): return o
    if o not in losses:
        raise ValueError(f"no loss is called {o!r}{nearest(o, losses)}; there are {list(losses)}; "
                         f"or pass a loss on {shape} logits")
    return losses[o]()

REDUCTION = choice('mean', 'sum', 'none')
_WEIGHT   = number(0)
_BETA     = number(0, 10**6)
_TOP      = torch.finfo(torch.float32).max
_WEIGHTS  = numbers((None,), what="a list of weights, finite numbers of 0 or more, one for each class", types='iuf',
                    lo=0, hi=_TOP)
_THRESH   = numbers((), (None,), what="a number in [0, 1], or one for each class", types='iuf', lo=LEAST_THRESH, hi=1)

def _float(v): return None if v is None else torch.as_tensor(v, dtype=torch.float32)

class MultilabelLoss:
    """Base of the losses on (n, c) logits and (n, c) targets of 0 and 1. It also turns logits to probabilities,
    `sigmoid(logits/temperature)`, and probabilities to decisions, `prob > thresh`"""
    @checked(reduction=REDUCTION, thresh=_THRESH, temperature=either(POSITIVE, numbers(
        (None,), what="one for each class", types='iuf', lo=1e-30, hi=1e30)))
    def __init__(self,
        reduction='mean', # or 'sum'; or 'none': (n, c)
        thresh=.5,        # in [0, 1], or (c,): what a probability must exceed for a label to be predicted
        temperature=1.,   # above 0, or (c,): what logits are divided by
    ):
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
        v = _THRESH('thresh', v)
        v = torch.as_tensor(np.asarray(v.cpu() if isinstance(v, Tensor) else v, dtype=np.float64), dtype=torch.float32)
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
    @checked(pos_weight=numbers((), (None,), what="a weight, a finite number of 0 or more, or one for each class",
                                types='iuf', lo=0, hi=_TOP))
    def __init__(self,
        pos_weight=None, # None, a number, or (c,): how much more a present label counts than an absent one
        **kwargs,        # `reduction`, `thresh`, `temperature`
    ):
        super().__init__(**kwargs)
        self.pos_weight = _float(pos_weight)
    def each(self, x, y):
        if self.pos_weight is not None: _check_length('pos_weight', self.pos_weight, x.shape[-1])
        w = None if self.pos_weight is None else self.pos_weight.to(x.device)
        return F.binary_cross_entropy_with_logits(x, y, pos_weight=w, reduction='none')

class MultilabelFocal(MultilabelLoss):
    "Focal loss of every label (Lin et al., 2017, arXiv:1708.02002): what is already right counts less by (1-p)^gamma"
    @checked(gamma=_WEIGHT, alpha=FRACTION)
    def __init__(self,
        gamma:float=2.,   # 0 or above; 0 = binary cross entropy
        alpha:float=None, # in [0, 1]: weight of present labels, 1 - alpha of absent ones; None = no weights
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.gamma,self.alpha = gamma,alpha
    def each(self, x, y):
        ce = F.binary_cross_entropy_with_logits(x, y, reduction='none')
        loss = ce*_power_of_sigmoid(torch.where(y > .5, -x, x), self.gamma)      # (1 - p of the target)^gamma
        return loss if self.alpha is None else loss*torch.where(y > .5, self.alpha, 1-self.alpha)

def _power_of_sigmoid(x, gamma):
    "sigmoid(x)^gamma, whose gradient is finite where sigmoid(x) is 0 or 1 in float32, for any gamma from 0 on"
    return torch.exp(gamma*F.logsigmoid(x))

class AsymmetricLoss(MultilabelLoss):
    """Asymmetric loss (Ridnik et al., 2020, arXiv:2009.14119): absent labels are focused harder than present ones, and
    those with a probability under `clip` are dropped. The paper sums over the labels; here `reduction` is over all
    entries"""
    @checked(gamma_pos=_WEIGHT, gamma_neg=_WEIGHT, clip=Kind(
        "a number of 0 or more, below 1", lambda o: _WEIGHT.ok(o) and o < 1))
    def __init__(self,
        gamma_pos:float=0., # focus on present labels, 0 or above
        gamma_neg:float=4., # focus on absent labels, 0 or above
        clip:float=.05,     # the paper's margin m, in [0, 1)
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.gamma_pos,self.gamma_neg,self.clip = gamma_pos,gamma_neg,clip
    def each(self, x, y):
        pos = F.logsigmoid(x)*_power_of_sigmoid(-x, self.gamma_pos)
        pm  = torch.sigmoid(x) - self.clip                                        # eq. 5
        on  = pm > 0
        # the gradient of pm^gamma is infinite at 0 for gamma < 1; log(1 - pm) = log(sigmoid(-x) + clip)
        log = torch.logaddexp(F.logsigmoid(-x), torch.tensor(float(self.clip), device=x.device).log())
        neg = torch.where(on, log*torch.where(on, pm, 1.).clamp(min=1e-12)**self.gamma_neg, 0.)   # eq. 6
        return -(y*pos + (1-y)*neg)

MULTILABEL_LOSSES = dict(bce=MultilabelBCE, focal=MultilabelFocal, asymmetric=AsymmetricLoss)

@checked(most=number(1, 10**30))
def balanced_pos_weight(
    annotations,      # list[Annotation] of the training set
    vocab,            # list of c names
    most:float=100.,  # from 1 on: a weight is at most this, and at least 1/`most`, so that no label is silenced
) -> Tensor:          # (c,) in [1/most, most]; 1 for a label of no image, and for one of every image
    "Images without each label for one with it: as `pos_weight` it makes present and absent labels weigh the same"
    has = torch.tensor([[o in a.labels for o in vocab] for a in annotations], dtype=torch.float32)
    has = has.reshape(len(annotations), len(vocab)).sum(0)   # also where there is no annotation
    lacks = len(annotations) - has
    return torch.where((has > 0) & (lacks > 0), lacks/has.clamp(min=1), 1.).clamp(1/most, most)

# --- points

class PointLoss:
    """Mean over the marked coordinates of (b, k, 2) or (b, 2k) outputs and (b, k, 2) targets, in [-1, 1]. Targets of
    nan are excluded; a batch of only such has loss 0"""
    @checked(kind=choice('mse', 'l1', 'smooth_l1', 'wing'), reduction=REDUCTION, beta=_BETA, w=_WEIGHT, eps=POSITIVE)
    def __init__(self,
        kind:str='mse',     # 'mse', 'l1', 'smooth_l1' (Huber's, with `beta`), 'wing' (Feng et al., 2018,
                            # arXiv:1711.06753)
        reduction='mean',   # or 'sum', 'none': (b, k, 2), 0 where not marked
        beta:float=.05,     # where 'smooth_l1' turns from square to straight, 0 or above; 0 = 'l1'
        w:float=.1, eps:float=.02, # of 'wing': range of its logarithm (0 or above) and its curvature (above 0), in
                            # units of the target
    ):
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
    def smooth_l1(self, d): return F.smooth_l1_loss(d, torch.zeros_like(d), beta=self.beta, reduction='none')
    def wing(self, d):      # eq. 5; C joins the two parts
        c = self.w - self.w*math.log(1 + self.w/self.eps)
        return torch.where(d.abs() < self.w, self.w*torch.log(1 + d.abs()/self.eps), d.abs() - c)

POINT_LOSSES = dict(mse=PointLoss.mse, l1=PointLoss.l1, smooth_l1=PointLoss.smooth_l1, wing=PointLoss.wing)

# --- one class and one box

class LocalizationLoss:
    """Mean over the images of: cross entropy of the class + `weight` * loss of the box, on (b, n_out + 4) outputs,
    class logits and then x1 y1 x2 y2 in [-1, 1]; (b,) class ids; and (b, 1, 4) boxes. A box of nan, or one that was
    pushed out of the image, is excluded"""
    @checked(bbox=choice('l2', 'l1', 'smooth_l1', 'giou'), weight=_WEIGHT, reduction=REDUCTION, beta=_BETA)
    def __init__(self,
        bbox:str='smooth_l1',  # 'l2', 'l1', 'smooth_l1' (Huber's, with `beta`), each the mean over the four numbers, or
                               # 'giou' (Rezatofighi et al., 2019, arXiv:1902.09630)
        weight:float=None,     # lambda: weight of the box beside the class, 0 or above; None = 10 for 'smooth_l1' and
                               # 'l1', 20 for 'l2', 3 for 'giou', so that at first both weigh about the same
        reduction='mean',      # or 'sum', 'none': (b,)
        beta:float=.1,         # where 'smooth_l1' turns from square to straight, in units of the target; 0 = 'l1'
        n_out:int=None,        # number of classes, which the learner fills in; outputs of another width then raise
    ):
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
        # where there is no box, both sides are the same one: what the net predicts there, even nan, must not matter
        some = y.new_tensor([-1., -1., 1., 1.])
        pred,true = (torch.where(on[:,None], o, some) for o in (x[:,-4:], y))
        loss = ce + self.weight*torch.where(on, self.each(self, pred, true), 0.)
        return loss if self.reduction == 'none' else getattr(loss, self.reduction)()

    def activation(self, x): return torch.cat([x[:,:-4].softmax(1), x[:,-4:]], 1)
    def decodes(self, x): return x[:,:-4].argmax(1),x[:,None,-4:]

    def l2(self, x, y):        return ((x - y)**2).mean(1)
    def l1(self, x, y):        return (x - y).abs().mean(1)
    def smooth_l1(self, x, y): return F.smooth_l1_loss(x, y, beta=self.beta, reduction='none').mean(1)
    def giou(self, x, y):      return generalized_box_iou_loss(x.clamp(-1e9, 1e9), y)   # areas stay below 3e38

BOX_LOSSES = dict(l2=(LocalizationLoss.l2, 20.), l1=(LocalizationLoss.l1, 10.), giou=(LocalizationLoss.giou, 3.),
                  smooth_l1=(LocalizationLoss.smooth_l1, 10.))   # with their usual weight

# --- a class for every pixel

class SegmentationLoss:
    """Base of the losses on (b, c, h, w) logits and (b, h, w) class indices of any integer dtype, 255 = void, which
    gives neither loss nor gradient; a batch of nothing else has loss 0. Logits of fewer pixels than the target, as a
    valid U-Net's, stand for its centre"""
    @checked(reduction=REDUCTION)
    def __init__(self,
        reduction='mean', # or 'sum'; or 'none': (b,), the 'mean' of each picture as if it were alone
    ):
        self.reduction = reduction

    def __repr__(self): return f"{type(self).__name__}()"

    # float32 logits; (b, h, w) int64, 0 where void; (b, h, w) bool, where not void; reduction -> () or (b,)
    def loss(self, x, y, on, reduction): raise NotImplementedError

    def __call__(self, inp, targ):
        x,y = inp.as_subclass(Tensor).float(),targ.as_subclass(Tensor)
        if x.ndim != 4 or y.ndim != 3 or len(x) != len(y) or y.is_floating_point():
            raise ValueError("expected (b, c, h, w) logits and (b, h, w) class indices, whole numbers; "
                             f"got {tuple(x.shape)} and {tuple(y.shape)} of {y.dtype}")
        y,c = crop_target.unchecked(y, x.shape[-2:]).long(),x.shape[1]
        on = y != VOID
        bad = on & ((y < 0) | (y >= c))   # what a GPU would answer with an assert that kills the process
        any_bad,any_on = torch.stack([bad.any(), on.any()]).tolist()   # read at once, since a GPU has to wait for each
        if any_bad:
            raise ValueError(f"the target holds {y[bad].unique()[:8].tolist()}, but the model gives {c} classes, 0 to "
                             f"{c-1}, beside {VOID} for void: the last layer needs more, or these values are void")
        if not any_on:
            nil = zero_loss([x])
            return nil.expand(len(x)) if self.reduction == 'none' else nil
        return self.loss(x, y.masked_fill(~on, 0), on, self.reduction)

    def activation(self, x): return x.softmax(1)
    def decodes(self, x):    return x.argmax(1)

@checked(targ=Kind("a tensor (b, h, w)", lambda o: isinstance(o, Tensor) and o.ndim == 3), hw=WIDTH_HEIGHT)
def crop_target(
    targ:Tensor, # (b, h, w)
    hw,          # (height, width) of the logits
) -> Tensor:     # (b, *hw)
    "`targ` without the same number of pixels at each of its four sides; raises where that does not give `hw`"
    (h,w),(H,W) = hw,targ.shape[-2:]
    m = max((H-h)//2, 0)
    centre = targ[:, m:H-m, m:W-m]
    if centre.shape[-2:] == (h, w): return centre
    raise ValueError(f"the model gives logits of {h} x {w} for targets of {H} x {W}, height x width; expected the "
                     "same, or fewer by the same number at each of the four sides: resize the logits in the model")

class SegmentationCE(SegmentationLoss):
    "Cross entropy; 'mean' is over the pixels, by their weights, as PyTorch's"
    @checked(weight=_WEIGHTS)
    def __init__(self,
        weight=None,   # (c,): what the pixels of each class count, as `class_weights` gives it; None = all the same
        **kwargs,      # `reduction`
    ):
        super().__init__(**kwargs)
        self.weight = _float(weight)

    def each(self, x, y): return F.cross_entropy(x, y, reduction='none')   # (b, h, w)

    def pixel_weights(self, y, on, c):   # (b, h, w), 0 where void
        if self.weight is None: return on.float()
        _check_length('weight', self.weight, c)
        return self.weight.to(y.device)[y]*on

    def loss(self, x, y, on, reduction):
        w = self.pixel_weights(y, on, x.shape[1])
        loss = torch.where(w > 0, self.each(x, y), 0.)*w   # the loss of a pixel that has no weight may be infinite
        if reduction == 'sum': return loss.sum()
        dims = (1, 2) if reduction == 'none' else (0, 1, 2)
        n = w.sum(dims)
        return loss.sum(dims)/torch.where(n > 0, n, 1.)

class SegmentationFocal(SegmentationCE):
    """Focal loss (Lin et al., 2017, arXiv:1708.02002) over classes that exclude each other: what is already right
    counts less by (1-p)^gamma. 'mean' is over the pixels, by their weights (the paper: over those of objects)"""
    @checked(gamma=_WEIGHT)
    def __init__(self,
        gamma:float=2., # 0 or above; 0 = cross entropy
        weight=None,    # (c,): the paper's alpha, for each class
        **kwargs,
    ):
        super().__init__(weight, **kwargs)
        self.gamma = gamma
    def each(self, x, y):
        ce = super().each(x, y)
        return ce*(-torch.expm1(-ce)).clamp(min=1e-6)**self.gamma   # 0**gamma has no gradient for gamma < 1

class SegmentationDice(SegmentationLoss):
    """1 - Dice of probabilities, 2 sum(p*t)/(sum(p) + sum(t)): of each class over all pixels of the batch, then the
    mean ('sum': the sum) over the classes that the batch's targets hold. Classes that they do not hold are left out;
    what is wrongly taken for these lacks elsewhere"""
    @checked(smooth=_WEIGHT)
    def __init__(self,
        smooth:float=1., # pixels, 0 or above, added above and below, so that a class of a few pixels is not all or
                         # nothing
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.smooth = smooth
    def loss(self, x, y, on, reduction):
        p,(b,c,h,_) = x.softmax(1),x.shape
        # a bin for each row and class, and one for its void: float32 cannot add up a whole picture one by one
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
    "Cross entropy + `dice` * Dice loss"
    @checked(weight=_WEIGHTS, dice=_WEIGHT, smooth=_WEIGHT)
    def __init__(self,
        weight=None,     # (c,), of the cross entropy
        dice:float=1.,   # weight of the Dice loss beside it, 0 or above
        smooth:float=1., # of the Dice loss, in pixels
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.parts,self.dice = (SegmentationCE(weight), SegmentationDice(smooth)),dice
    def loss(self, x, y, on, reduction):
        ce,dice = (o.loss(x, y, on, reduction) for o in self.parts)
        return ce + self.dice*dice

_W0,_SIGMA  = number(0, 10**9),number(0, 10**5, open=True, what="pixels")
_BACKGROUND = either(whole(0, 255, what="a class index"), choice(None))

class BorderCE(SegmentationCE):
    """Cross entropy in which pixels between two objects that nearly touch count more, as in U-Net (Ronneberger et al.,
    2015, arXiv:1505.04597): each pixel's weight is that of its class + `border_weights`, which are computed from the
    target, on the CPU, at every call"""
    @checked(w0=_W0, sigma=_SIGMA, background=_BACKGROUND)
    def __init__(self, weight=None, w0:float=10., sigma:float=5., background:int=0, **kwargs):
        super().__init__(weight, **kwargs)
        self.border = dict(w0=w0, sigma=sigma, background=background)
    def pixel_weights(self, y, on, c):
        border = [border_weights.unchecked(m, **self.border) for m in y.masked_fill(~on, VOID).cpu().numpy()]
        return (super().pixel_weights(y, on, c) + torch.from_numpy(np.stack(border)).to(y.device))*on

SEGMENTATION_LOSSES = dict(ce=SegmentationCE, focal=SegmentationFocal, dice=SegmentationDice,
                           ce_dice=SegmentationCEDice)

@checked(n=whole(1, 256, what="a number of classes"), kind=choice('median_frequency', 'inverse', None))
def class_weights(
    annotations, # list[Annotation] with `mask`, of the training set
    n:int,       # number of classes
    kind='median_frequency', # median of the frequencies / that of the class, where the frequency is the class's share
                             # of all pixels of the pictures that hold it (Eigen & Fergus, 2015, arXiv:1411.4734; as in
                             # SegNet); 'inverse': 1 / pixels of the class, the mean over all pixels being 1; None: 1
) -> Tensor:     # (n,); 1 for a class that no mask holds
    "What a pixel of each class should count for rare classes to be learnt too. Every mask is read once, in threads"
    res = np.ones(n, np.float32)
    if kind is None: return torch.from_numpy(res)
    pixels,around = np.zeros(n),np.zeros(n)
    with ThreadPoolExecutor() as ex:
        for k in ex.map(lambda a: np.bincount(class_mask(a, n).ravel(), minlength=max(n, VOID+1)), annotations):
            size,k[VOID] = k.sum(),0
            pixels += k[:n]; around += size*(k[:n] > 0)
    on = pixels > 0
    if not on.any(): raise AnnotationError(f"the {len(annotations)} masks hold no pixel of any class, so that there is "
                                           "nothing to weigh; are these the annotations to train on?")
    freq = pixels[on]/(around[on] if kind == 'median_frequency' else pixels.sum())
    res[on] = (np.median(freq) if kind == 'median_frequency' else 1/on.sum())/freq
    return torch.from_numpy(res)

@checked(mask=numbers((None, None), what="class indices (h, w), whole numbers", types='iu'), w0=_W0, sigma=_SIGMA,
         background=_BACKGROUND)
def border_weights(
    mask,               # (h, w) class indices, 255 = void
    w0:float=10.,       # weight between two objects that touch
    sigma:float=5.,     # pixels
    background:int=0,   # the class that is no object; None = each is one
) -> np.ndarray:        # (h, w) float32, 0 where there are not two objects near
    """U-Net's eq. 2 without the weight of the class: w0 exp(-(d1+d2)^2 / 2 sigma^2), d1 and d2 the distances to the
    nearest and the second nearest object, 0 inside it. Objects are the connected pixels of a class, over corners too,
    so that two of one class that touch are one: leave a gap of background or void between them"""
    mask = np.asarray(mask)
    d1,d2 = (np.full(mask.shape, np.inf, np.float32) for _ in range(2))
    reach = math.ceil(6*sigma)   # further away the weight is under w0 e^-18
    for c in set(np.unique(mask).tolist()) - {background, VOID}:
        objects = ndimage.label(mask == c, np.ones((3, 3)))[0]
        for i,box in enumerate(ndimage.find_objects(objects), 1):
            at = tuple(slice(max(o.start-reach, 0), o.stop+reach) for o in box)
            d = ndimage.distance_transform_edt(objects[at] != i)
            d2[at] = np.minimum(d2[at], np.maximum(d1[at], d))
            d1[at] = np.minimum(d1[at], d)
    return (w0*np.exp(-(d1+d2)**2/(2*sigma**2))).astype(np.float32)

# --- objects

class DetectionLoss:
    """The sum of the losses that a detector gives by name. Its threshold says which detections count: those with a
    score above it, the class's own where there is one for each"""
    @checked(thresh=_THRESH, reduction=choice('mean', 'none'), weights=Kind(
        "a dict from the name of a loss to its weight, a number of 0 or more",
        lambda o: isinstance(o, dict) and all(isinstance(k, str) and _WEIGHT.ok(v) for k,v in o.items())))
    def __init__(self,
        weights:dict=None,  # name -> what that loss counts; None = 1 each
        thresh=.5,          # in [0, 1], or one for each class without background
        reduction='mean',   # over the pictures, as the detectors themselves do; 'none', for batches of one: (1,)
    ):
        self.weights,self.thresh,self.reduction = dict(weights or {}),thresh,reduction

    def __repr__(self): return f"DetectionLoss(weights={self.weights}, thresh={self.thresh})"

    def __call__(self, parts, *targs):
        unknown = sorted({*self.weights} - {*parts})
        if unknown: raise ValueError(f"weights names {unknown}, but the losses of this detector are {sorted(parts)}")
        loss = sum(v.float().mean()*self.weights.get(k, 1.) for k,v in parts.items())
        if self.reduction != 'none': return loss
        if targs and len(targs[0]) > 1: raise ValueError("a detector's losses are means over a batch; for those of "
                                                         f"single pictures take batches of one, not {len(targs[0])}")
        return loss.view(1)

    def activation(self, dets): return dets
    def decodes(self, dets):    # (..., 6) -> (..., 6); or with the masks, ((..., 6), (..., m, m)) -> the same
        "`dets` with zeros in the rows that do not count"
        if isinstance(dets, tuple):
            on = above(dets[0], self.thresh)[...,None]
            return dets[0]*on,dets[1]*on[...,None]
        return dets*above(dets, self.thresh)[...,None]

def above(
    dets:Tensor, # (..., 6) x1 y1 x2 y2 score label, label 0 = none
    thresh,      # a number, or one for each class without background
) -> Tensor:     # (...) bool
    "Which detections have a score above the threshold of their class"
    label = dets[...,5].long()
    t = torch.as_tensor(thresh, dtype=torch.float32, device=dets.device)
    return (label > 0) & (dets[...,4] > (t if t.ndim == 0 else t[(label-1).clamp(min=0)]))
