"`fine_tune` as one training: the new layers, then all, with one log and one best value"
from __future__ import annotations
import numpy as np
from fastai.callback.schedule import ParamScheduler, combined_cos

__all__ = ['one_cycle', 'FineTuning']

def one_cycle(
    opt,           # optimizer of fastai
    lr,            # highest learning rate: a number, or a slice of the first to the last parameter group
    moms,          # momentum at the start, at the highest rate and at the end
    div=25.,       # highest rate divided by the first
    div_final=1e5, # highest rate divided by the last
    pct_start=.25, # share of the training in which the rate rises, in [0, 1]
) -> dict:
    "fastai's 1cycle policy of `opt`: schedules by name; `lr` is a number, or a slice of the first to the last group"
    opt.set_hyper('lr', lr)
    top = np.array([h['lr'] for h in opt.hypers])
    return {'lr': combined_cos(pct_start, top/div, top, top/div_final), 'mom': combined_cos(pct_start, *moms)}

class FineTuning(ParamScheduler):
    """Schedules of the frozen epochs, then `unfreeze`, then those of the others. fastai trains twice, so that loggers
    begin anew, files of the first epochs are written over, and the best value so far is forgotten"""
    def __init__(self,
        n_frozen:int,  # epochs before `unfreeze`
        frozen:dict,   # schedules of these, by hyperparameter
        rest:dict,     # schedules of all others
    ):
        super().__init__(frozen if n_frozen else rest)
        self.n_frozen,self.rest,self.open = n_frozen,rest,False

    def before_fit(self):
        super().before_fit()
        self.open = False

    def before_epoch(self):
        if self.open or self.epoch < self.n_frozen: return
        # processes that train as one wrap the model anew, for they share the gradients of what is trained then
        if hasattr(self.learn, 'distributed'): self.learn.distributed.unwrap()
        self.learn.unfreeze()
        self.scheds,self.open = self.rest,True

    def before_train(self):
        first,n = (self.n_frozen, self.n_epoch - self.n_frozen) if self.open else (0, self.n_frozen)
        self.pct,self.n = (self.epoch - first)/n,n

    def before_batch(self):
        for name,f in self.scheds.items(): self.opt.set_hyper(name, f(self.pct))

    def after_batch(self):
        super().after_batch()
        self.pct += 1./(self.n_iter*self.n)   # as fastai adds it up, to the same bits
