"Recipes: how `fine_tune` trains a model unless it is told otherwise"
from __future__ import annotations
from dataclasses import dataclass
from ..arguments import POSITIVE, checked, number, whole
from .ema import DECAY
from .kinds import ONE_RATE

__all__ = ['Recipe']

@dataclass(frozen=True)
class Recipe:
    """Defaults of `fine_tune`. A task has one, a registered architecture may change parts of it
    (`@register(..., recipe=dict(base_lr=1e-4))`; with pretrained weights of the whole network also
    `recipe_all=dict(...)`), and arguments of `fine_tune` win over both. Where nothing is pretrained, no layer is
    frozen and all have one rate"""
    base_lr:float=2e-3     # highest learning rate of the frozen epochs; of the others half of it
    freeze_epochs:int=1    # epochs that train the last parameter group alone, before those that train all
    lr_mult:float=100.     # learning rate of the last parameter group divided by that of the first
    wd:float=None          # weight decay; None (default): the learner's
    grad_clip:float=0.     # largest norm of all gradients together; 0 (default): gradients are not clipped
    ema:float=0.           # decay of an average of the weights, which takes their place (`EMA`); 0 (default): none

    @checked(base_lr=ONE_RATE, freeze_epochs=whole(0), lr_mult=POSITIVE, wd=number(0), grad_clip=number(0), ema=DECAY)
    def replace(self,
        base_lr=None, freeze_epochs=None, lr_mult=None, # as the fields; None (default): kept
        wd=None, grad_clip=None, ema=None,              # as the fields; None (default): kept
    ) -> Recipe:
        "A copy with the values that are not `None` in place of its own"
        given = dict(base_lr=base_lr, freeze_epochs=freeze_epochs, lr_mult=lr_mult, wd=wd, grad_clip=grad_clip, ema=ema)
        return Recipe(**{**vars(self), **{k: v for k,v in given.items() if v is not None}})

    def from_scratch(self) -> Recipe:
        "A copy for a network of which nothing is pretrained"
        return self.replace(freeze_epochs=0, lr_mult=1.)
