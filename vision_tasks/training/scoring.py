"Evaluation beside training: streams of predictions, and a recorder that keeps the training"
from __future__ import annotations
from contextlib import contextmanager
from copy import copy
from fastai.callback.all import Callback, TrackerCallback
from fastai.learner import Metric
from ..models.layers import refuse_nan

__all__ = []

@contextmanager
def trackers_waiting(learn, event_name):
    """A while, at the end of an epoch, in which fastai's trackers (`EarlyStoppingCallback`, `SaveModelCallback`,
    `ReduceLROnPlateau`) do not run whose metric has no value this epoch, as of `MeanAP(every=4)`: nan would count as no
    progress"""
    idle = [] if event_name != 'after_epoch' else [
        cb for cb in learn.cbs if isinstance(cb, TrackerCallback) and cb.run and not getattr(cb, 'every_epoch', False)
        and any(cb.monitor in (m.name, f'valid_{m.name}') and hasattr(m, 'due') and not m.due(learn)
                for m in learn.metrics)]
    for cb in idle: cb.run = False
    try: yield
    finally:
        for cb in idle: cb.run = True

class Scoring(Callback):
    """Raise `ValueError` where the model gives nan, as one that diverged: scores would be those of its first class. By
    this name fastai's loggers and trackers know that nothing is trained: they neither write nor load anything"""
    order,name = 65,'gather_preds'   # after mixed precision made the predictions float32
    def __call__(self, event_name):
        if event_name == 'after_pred': self.after_pred()   # fastai's own would bury the message of an error
    def after_pred(self): refuse_nan(self.learn.pred)

class Stream(Scoring):
    "Give each batch of probabilities to `f` and keep none; `mirror` averages with those of the mirrored images"
    every_process,name = True,'streaming'   # predicts all images, so that one process may predict alone
    def __init__(self, f, mirror): super().__init__(); self.f,self.mirror = f,mirror
    def after_pred(self):
        super().after_pred()
        p = self.learn.probabilities(self.learn.pred)
        if self.mirror:
            mirrored = self.learn.model(*[o.flip(-1) for o in self.learn.xb])
            p = (p + self.learn.mirror_back(self.learn.probabilities(mirrored)))/2
        self.f(p)

@contextmanager
def recorder_kept(learn):
    "A while after which `learn.recorder` is as it was, so that the training is still there to be plotted"
    rec = getattr(learn, 'recorder', None)
    if rec is None:
        yield
        return
    # fastai begins new lists, but counts on in its two losses
    kept = {k: copy(v) if isinstance(v, Metric) else v for k,v in vars(rec).items()}
    try: yield
    finally:
        vars(rec).clear()
        vars(rec).update(kept)
