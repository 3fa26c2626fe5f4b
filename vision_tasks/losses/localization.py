"The loss of one class and one box per image"
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss
from ..arguments import checked, choice
from .base import BETA_OF_LOSS, REDUCTION, WEIGHT

__all__ = ['LocalizationLoss']

class LocalizationLoss:
    """Mean over the images of: cross entropy of the class + `weight` * loss of the box, on (b, n_out + 4) outputs,
    class logits and then x1 y1 x2 y2 in [-1, 1]; (b,) class ids; and (b, 1, 4) boxes. Boxes that are nan, or
    that an augmentation moved out of the image, are excluded"""
    @checked(bbox=choice('l2', 'l1', 'smooth_l1', 'giou'), weight=WEIGHT, reduction=REDUCTION, beta=BETA_OF_LOSS)
    def __init__(self,
        bbox:str='smooth_l1',  # 'l2', 'l1', 'smooth_l1' (Huber's, with `beta`), each the mean over the four numbers, or
                               # 'giou' (Rezatofighi et al., 2019, arXiv:1902.09630)
        weight:float=None,     # lambda: weight of the box beside the class, 0 or above; None (default): 10 for
                               # 'smooth_l1' and 'l1', 20 for 'l2', 3 for 'giou': at first both weigh about the same
        reduction='mean',      # or 'sum', 'none': (b,)
        beta:float=.1,         # where 'smooth_l1' turns from quadratic to linear, in units of the target; 0: 'l1'
        n_out:int=None,        # number of classes, which the learner sets: outputs of another width raise `ValueError`
    ):
        f,usual = BOX_LOSSES[bbox]
        self.bbox,self.each,self.weight = bbox,f,usual if weight is None else weight
        self.reduction,self.beta,self.n_out = reduction,beta,n_out

    def __repr__(self): return f"LocalizationLoss({self.bbox!r}, weight={self.weight})"

    def __call__(self, inp, label, bbox):
        x,y = inp.as_subclass(Tensor).float(),bbox.as_subclass(Tensor).float().view(-1, 4).clamp(-1, 1)
        if self.n_out is not None and x.shape[1] != self.n_out + 4:
            raise ValueError(f"the model gives {x.shape[1]} numbers per image; expected {self.n_out} class logits "
                             f"and 4 of a box, {self.n_out + 4} in all")
        ce = F.cross_entropy(x[:,:-4], label.as_subclass(Tensor), reduction='none')
        on = (y[:,2:] > y[:,:2]).all(1)                            # nan is not
        # where there is no box, prediction and target are the same one: not even a nan of the model must reach the loss
        some = y.new_tensor([-1., -1., 1., 1.])
        pred,true = (torch.where(on[:,None], o, some) for o in (x[:,-4:], y))
        loss = ce + self.weight*torch.where(on, self.each(self, pred, true), 0.)
        return loss if self.reduction == 'none' else getattr(loss, self.reduction)()

    def activation(self,
        x, # (b, c + 4) class logits and box
    ):     # (b, c + 4) class probabilities and the same box
        return torch.cat([x[:,:-4].softmax(1), x[:,-4:]], 1)

    def decodes(self,
        x, # (b, c + 4) as `activation` returns it
    ):     # (b,) class ids; (b, 1, 4) boxes
        return x[:,:-4].argmax(1),x[:,None,-4:]

    def l2(self, x, y, # (b, 4) predicted and true boxes
    ): return ((x - y)**2).mean(1)

    def l1(self, x, y, # (b, 4) predicted and true boxes
    ): return (x - y).abs().mean(1)

    def smooth_l1(self, x, y, # (b, 4) predicted and true boxes
    ): return F.smooth_l1_loss(x, y, beta=self.beta, reduction='none').mean(1)

    def giou(self, x, y, # (b, 4) predicted and true boxes
    ): return generalized_box_iou_loss(x.clamp(-1e9, 1e9), y)   # areas stay below 3e38

BOX_LOSSES = dict(l2=(LocalizationLoss.l2, 20.), l1=(LocalizationLoss.l1, 10.), giou=(LocalizationLoss.giou, 3.),
                  smooth_l1=(LocalizationLoss.smooth_l1, 10.))   # with their default weight
