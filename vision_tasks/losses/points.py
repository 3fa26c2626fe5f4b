"Losses of keypoints; points that are not marked are excluded"
from __future__ import annotations
import math
import torch
import torch.nn.functional as F
from torch import Tensor
from ..arguments import POSITIVE, checked, choice
from .base import BETA_OF_LOSS, REDUCTION, WEIGHT

__all__ = ['PointLoss']

class PointLoss:
    """Mean over the marked coordinates of (b, k, 2) or (b, 2k) outputs and (b, k, 2) targets, in [-1, 1]. Targets of
    nan are excluded; a batch with no marked point has loss 0"""
    @checked(kind=choice('mse', 'l1', 'smooth_l1', 'wing'), reduction=REDUCTION, beta=BETA_OF_LOSS, w=WEIGHT,
             eps=POSITIVE)
    def __init__(self,
        kind:str='mse',     # 'mse', 'l1', 'smooth_l1' (Huber's, with `beta`), 'wing' (Feng et al., 2018,
                            # arXiv:1711.06753)
        reduction='mean',   # or 'sum', 'none': (b, k, 2), 0 where not marked
        beta:float=.05,     # where 'smooth_l1' turns from quadratic to linear, 0 or above; 0: 'l1'
        w:float=.1,         # of 'wing': range of its logarithm in units of the target, 0 or above
        eps:float=.02,      # of 'wing': its curvature in units of the target, above 0
    ):
        self.kind,self.reduction,self.beta,self.w,self.eps = kind,reduction,beta,w,eps

    def __repr__(self): return f"PointLoss({self.kind!r})"

    def __call__(self, inp, targ):
        y = targ.as_subclass(Tensor).float()
        x = inp.as_subclass(Tensor).float()
        if x.numel() != y.numel():
            raise ValueError(f"the model gives {x.numel()//len(x)} numbers per image for {y.shape[1]} points: "
                             f"its last layer needs n_out={y[0].numel()}")
        x,on = x.view_as(y),~y.isnan()
        d = torch.where(on, x - y.nan_to_num(), 0.)      # no gradient from points that are not marked
        loss = POINT_LOSSES[self.kind](self, d)
        if self.reduction == 'none': return loss
        return loss.sum() if self.reduction == 'sum' else loss.sum()/on.sum().clamp(min=1)

    def decodes(self,
        x, # (b, 2k) or (b, k, 2) in [-1, 1]
    ):     # (b, k, 2)
        return x.view(len(x), -1, 2)

    def mse(self, d, # (b, k, 2) prediction minus target, 0 where not marked
    ): return d**2

    def l1(self, d, # (b, k, 2) prediction minus target, 0 where not marked
    ): return d.abs()

    def smooth_l1(self, d, # (b, k, 2) prediction minus target, 0 where not marked
    ): return F.smooth_l1_loss(d, torch.zeros_like(d), beta=self.beta, reduction='none')

    def wing(self, d, # (b, k, 2) prediction minus target, 0 where not marked
    ):
        # eq. 5; C joins the two parts
        c = self.w - self.w*math.log(1 + self.w/self.eps)
        return torch.where(d.abs() < self.w, self.w*torch.log(1 + d.abs()/self.eps), d.abs() - c)

POINT_LOSSES = dict(mse=PointLoss.mse, l1=PointLoss.l1, smooth_l1=PointLoss.smooth_l1, wing=PointLoss.wing)
