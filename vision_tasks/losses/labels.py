"Losses for several labels per image. They hold threshold and temperature, so that both are exported with the learner"
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor
from ..arguments import FRACTION, POSITIVE, Kind, checked, either, number, numbers
from .base import MAX_FLOAT32, REDUCTION, THRESH, WEIGHT, Thresholded, as_float, check_length

__all__ = ['MultilabelLoss', 'MultilabelBCE', 'MultilabelFocal', 'AsymmetricLoss', 'MULTILABEL_LOSSES',
           'balanced_pos_weight']

class MultilabelLoss(Thresholded):
    """Base of the losses on (n, c) logits and (n, c) targets in [0, 1]. It also turns logits into probabilities,
    `sigmoid(logits/temperature)`, and predicts a label where `prob > thresh`"""
    @checked(reduction=REDUCTION, thresh=THRESH, temperature=either(POSITIVE, numbers(
        (None,), what="one for each class", types='iuf', lo=1e-30, hi=1e30)))
    def __init__(self,
        reduction='mean', # or 'sum'; or 'none': (n, c)
        thresh=.5,        # in [0, 1], or (c,) for one per class: a label is predicted where its probability is above
        temperature=1.,   # above 0, or (c,) for one per class: what logits are divided by
    ):
        self.reduction,self.thresh,self.temperature = reduction,thresh,temperature

    def __repr__(self): return f"{type(self).__name__}(thresh={self.thresh}, temperature={self.temperature})"

    def each(self,
        x, # (n, c) float32 logits
        y, # (n, c) targets: 0 or 1, or between them after MixUp or CutMix
    ):     # (n, c) losses
        raise NotImplementedError

    def __call__(self, inp, targ):
        x,y = inp.as_subclass(Tensor),targ.as_subclass(Tensor)
        if x.shape != y.shape:
            raise ValueError(f"the model gives {tuple(x.shape)} logits for {tuple(y.shape)} targets: "
                             f"its last layer needs n_out={y.shape[-1]}")
        loss = self.each(x.float(), y.float())
        return loss if self.reduction == 'none' else getattr(loss, self.reduction)()

    def activation(self,
        x, # (n, c) logits
    ):     # (n, c) probabilities in [0, 1]
        return torch.sigmoid(x/self._per_class('temperature', self.temperature, x))

    def decodes(self,
        p, # (n, c) probabilities
    ):     # (n, c) bool: which labels are predicted
        return p > self._per_class('thresh', self.thresh, p)

    def _per_class(self, name, v, x):
        check_length(name, v, x.shape[-1])
        return v.to(x.device) if isinstance(v, Tensor) else v

class MultilabelBCE(MultilabelLoss):
    "Binary cross entropy of each label, on logits"
    @checked(pos_weight=numbers((), (None,), what="a weight, a finite number of 0 or more, or one for each class",
                                types='iuf', lo=0, hi=MAX_FLOAT32))
    def __init__(self,
        pos_weight=None, # None, a number, or (c,): how much more a present label counts than an absent one
        **kwargs,        # `reduction`, `thresh`, `temperature`
    ):
        super().__init__(**kwargs)
        self.pos_weight = as_float(pos_weight)
    def each(self, x, y):
        if self.pos_weight is not None: check_length('pos_weight', self.pos_weight, x.shape[-1])
        w = None if self.pos_weight is None else self.pos_weight.to(x.device)
        return F.binary_cross_entropy_with_logits(x, y, pos_weight=w, reduction='none')

class MultilabelFocal(MultilabelLoss):
    "Focal loss of each label (Lin et al., 2017, arXiv:1708.02002): easy labels are weighted down by (1-p)^gamma"
    @checked(gamma=WEIGHT, alpha=FRACTION)
    def __init__(self,
        gamma:float=2.,   # 0 or above; 0 = binary cross entropy
        alpha:float=None, # in [0, 1]: weight of present labels; 1 - alpha: of absent ones; None (default): 1 each
        **kwargs,         # `reduction`, `thresh`, `temperature`
    ):
        super().__init__(**kwargs)
        self.gamma,self.alpha = gamma,alpha
    def each(self, x, y):
        pos = -F.logsigmoid(x)*_power_of_sigmoid(-x, self.gamma)
        neg = -F.logsigmoid(-x)*_power_of_sigmoid(x, self.gamma)
        if self.alpha is not None: pos,neg = self.alpha*pos,(1-self.alpha)*neg
        return torch.lerp(neg, pos, y)   # of targets between 0 and 1, as MixUp makes them, the losses of both are mixed

def _power_of_sigmoid(x, gamma):
    "sigmoid(x)^gamma, whose gradient is finite where sigmoid(x) is 0 or 1 in float32, for any gamma from 0 on"
    return torch.exp(gamma*F.logsigmoid(x))

class AsymmetricLoss(MultilabelLoss):
    """Asymmetric loss (Ridnik et al., 2020, arXiv:2009.14119): more focusing for absent labels than for present ones,
    and absent labels with a probability below `clip` have no loss. The paper sums over the labels; here `reduction` is
    over all entries"""
    @checked(gamma_pos=WEIGHT, gamma_neg=WEIGHT, clip=Kind(
        "a number of 0 or more, below 1", lambda o: WEIGHT.ok(o) and o < 1))
    def __init__(self,
        gamma_pos:float=0., # focusing of present labels, 0 or above
        gamma_neg:float=4., # focusing of absent labels, 0 or above
        clip:float=.05,     # the paper's margin m, in [0, 1)
        **kwargs,           # `reduction`, `thresh`, `temperature`
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
    vocab,            # list of the c class names
    most:float=100.,  # 1 or above: weights are clipped to [1/most, most], so that no label loses all influence
) -> Tensor:          # (c,) in [1/most, most]; 1 for a label of no image or of every image
    "Images without the label per image with it; as `pos_weight` it makes present and absent labels weigh the same"
    has = torch.tensor([[o in a.labels for o in vocab] for a in annotations], dtype=torch.float32)
    has = has.reshape(len(annotations), len(vocab)).sum(0)   # (c,); without annotations too
    lacks = len(annotations) - has
    return torch.where((has > 0) & (lacks > 0), lacks/has.clamp(min=1), 1.).clamp(1/most, most)
