"""An exponential moving average of the weights, which is validated, saved and exported in their place (Polyak and
Juditsky, 1992; Tarvainen and Valpola, 2017, arXiv:1703.01780)"""
from __future__ import annotations
import torch
from timm.utils import ModelEmaV3
from fastai.callback.core import Callback
from fastai.torch_core import get_model
from ..arguments import FLAG, Kind, checked, number

__all__ = ['EMA']

DECAY = Kind("a number from 0 to below 1", lambda o: number(0, 1).ok(o) and o < 1)

class EMA(Callback):
    """Average the weights over the steps of a training, with timm's `ModelEmaV3`. The average takes the place of the
    weights for validation, for callbacks that save after an epoch, and when the training ends; training goes on with
    the weights themselves. BatchNorm's statistics are averaged too"""
    order = -2   # before all that validate and save; after TrainEvalCallback, which moves the model to its device
    @checked(decay=DECAY, warmup=FLAG)
    def __init__(self,
        decay:float=.999,    # the average keeps this share of itself at each step, in [0, 1); 0: it is the weights
        warmup:bool=True,    # begin with a smaller share, 1 - (1 + step)^(-2/3), so that short trainings forget the
                             # weights that they began with
    ):
        self.decay,self.warmup = decay,warmup
        self.average,self.inside = None,False

    def before_fit(self):
        self.average,self.inside = None,False
        # a range test or a prediction is no training
        self.run = not hasattr(self.learn, 'lr_finder') and not hasattr(self.learn, 'gather_preds')
        if self.run: self.average,self.n = ModelEmaV3(get_model(self.learn.model), self.decay,
                                                      use_warmup=self.warmup),0

    def before_train(self):
        if self.inside: self._swap()

    def after_step(self):
        self.n += 1
        # the first update copies the weights where `step` is 1: the average begins after the first step
        self.average.update(get_model(self.learn.model), self.n)

    def before_validate(self):
        if self.average is not None and not self.inside: self._swap()

    def after_fit(self):
        if self.average is None: return
        if not self.inside: self._swap()
        self.average,self.inside = None,False

    @torch.no_grad()
    def _swap(self):
        "Exchange weights and average in place, so that the optimizer keeps its tensors"
        for a,b in zip(self.average.module.state_dict().values(), get_model(self.learn.model).state_dict().values()):
            kept = b.clone()
            b.copy_(a)
            a.copy_(kept)
        self.inside = not self.inside

    # the weights of an exported learner are the average already
    def __getstate__(self): return dict(self.__dict__, average=None, inside=False)
