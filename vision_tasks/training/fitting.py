"Training: `fit`, `fine_tune`, `fit_one_cycle` and `lr_find` with what is checked before they start"
from __future__ import annotations
from collections import namedtuple
from functools import partial
import numpy as np
import torch
from fastcore.basics import tuplify
from fastcore.foundation import L
# `all`, for it patches fit_one_cycle, lr_find, to_fp16, summary, no_bar into Learner
from fastai.callback.all import GradientClip, MixHandler, valley
from fastai.learner import Learner
from fastai.torch_core import find_bs, num_distrib, to_detach
from ..arguments import COUNT, FLAG, FRACTION, POSITIVE, SHARE, brief, checked, checked_methods, number, whole
from ..distributed import in_processes
from ..show.plots import plot_lr_find
from ..warning import warn
from .ema import DECAY, EMA
from .fine_tuning import FineTuning, one_cycle
from .kinds import CBS, MOMS, ONE_RATE, RATE
from .rates import steepest
from .scoring import trackers_waiting

__all__ = ['Fitting']

LEAST_STEPS,MOST_STEPS = 20,100   # batches of a range test that has a curve, and that is worth its time
SPAN = 1000.   # from the recipe's rate to the first and to the last of a range test
NO_DATA = "an exported learner leaves its data behind"

@checked_methods
class Fitting:
    "What a `TaskLearner` trains with"
    def check_rates(self,
        name, # of the argument, for the message
        lr,   # learning rate as `fit` takes it
    ):
        "Raise `ValueError` where `lr` is a list of other than one rate for each parameter group"
        if not isinstance(lr, (list, tuple, np.ndarray)): return
        n = len(L(self.splitter(self.model)))
        if len(lr) != n: raise ValueError(
            f"{name}: expected a rate for each of the {n} parameter groups, got {brief(list(lr))}; slice(low, high) "
            "spreads two over all groups")

    def check_training(self, cbs=None):
        """Raise `ValueError` where training with the further callbacks `cbs` makes no sense: on no batch at all, or
        with MixUp or CutMix where the task's targets cannot be mixed or a batch is one image; `RuntimeError` in one of
        several processes that do not train as one"""
        if num_distrib() > 1 and not hasattr(self, 'distributed'):
            raise RuntimeError(f"this is one of {num_distrib()} processes, each of which would train a model of its "
                               "own; train them as one: with learn.distrib_ctx(): learn.fine_tune(...)")
        kinds  = [o if isinstance(o, type) else type(o) for o in (*self.cbs, *L(cbs))]
        mixing = [o for o in kinds if issubclass(o, MixHandler)]
        if mixing and self.not_mixed is not None: raise ValueError(
            f"{mixing[0].__name__} mixes images and one label each, which {self.not_mixed} cannot follow: drop it; "
            "JointTransform and `batch_tfms` augment this task")
        train = self.dls.train
        if mixing and getattr(train, 'bs', None) == 1: raise ValueError(
            f"{mixing[0].__name__} mixes the images of a batch, and bs=1 has one: raise bs to 2 or more, or drop it")
        if not hasattr(train, '__len__') or getattr(train, 'n', 0) is None or len(train): return
        if not len(train.dataset): raise ValueError(f"there are no images to train on: {NO_DATA}")
        raise ValueError(f"the training DataLoader gives no batch: bs={train.bs} is more than its "
                         f"{len(train.dataset)} images, and it drops the last batch; make it with a smaller bs, or "
                         "with drop_last=False")

    @checked(n_epoch=COUNT, lr=RATE, wd=number(0), reset_opt=FLAG, start_epoch=whole(0), cbs=CBS)
    def fit(self,
        n_epoch:int,          # epochs
        lr=None,              # learning rate: a number, a slice of the first to the last parameter group, or one per
                              # group; None: the learner's
        wd:float=None,        # weight decay; None: the learner's
        cbs=None,
        reset_opt:bool=False, # begin with a new optimizer
        start_epoch:int=0,    # epoch to go on from; those before it are skipped
    ):
        "fastai's `fit`; raises `ValueError` before it starts where `check_training` does"
        self.check_training(cbs)
        self.check_rates('lr', lr)
        loss = self.loss_func
        try: Learner.fit(self, n_epoch, lr, wd, cbs, reset_opt, start_epoch)
        finally:
            # MixUp and CutMix put a loss of their own in place, and leave it there where training is interrupted
            if isinstance(getattr(self.loss_func, '__self__', None), MixHandler): self.loss_func = loss

    @checked(epochs=COUNT, base_lr=ONE_RATE, freeze_epochs=whole(0), lr_mult=POSITIVE, pct_start=SHARE, div=POSITIVE,
             div_final=POSITIVE, wd=number(0), moms=MOMS, reset_opt=FLAG, start_epoch=whole(0), cbs=CBS,
             grad_clip=number(0), ema=DECAY)
    def fine_tune(self,
        epochs:int,            # with all layers
        base_lr:float=None,    # highest learning rate of the frozen epochs; of the others half of it
        freeze_epochs:int=None, # epochs before these that train the last parameter group alone; 0: none
        lr_mult:float=None,    # the last group's rate divided by the first's
        pct_start:float=.3,    # share of `epochs` in which the rate rises
        div:float=5.,          # of `epochs`: the highest rate divided by the first
        div_final:float=1e5,   # the highest rate divided by the last
        wd:float=None,         # weight decay; None (default): that of `learn.recipe`, else the learner's
        moms:tuple=None,       # momentum at the start, the highest rate and the end; None (default): the learner's
        cbs=None,
        reset_opt:bool=False,  # begin with a new optimizer
        start_epoch:int=0,     # of all epochs, where a training goes on
        grad_clip:float=None,  # largest norm of all gradients together; 0: gradients are not clipped
        ema:float=None,        # decay of an average of the weights, which takes their place (`EMA`); 0: none
    ):
        """fastai's `fine_tune`, to the same weights, but as one training of `freeze_epochs + epochs` epochs: one log,
        one best value. Where `base_lr`, `freeze_epochs`, `lr_mult`, `wd`, `grad_clip` and `ema` are `None` (default),
        they are those of `learn.recipe`. A callback that ends training, such as `EarlyStoppingCallback`, ends it in the
        frozen epochs too. Raises `ValueError` before it starts where `check_training` does"""
        self.check_training(cbs)   # before anything is frozen
        r = self.recipe.replace(base_lr=base_lr, freeze_epochs=freeze_epochs, lr_mult=lr_mult, wd=wd,
                                grad_clip=grad_clip, ema=ema)
        moms = self.moms if moms is None else moms
        self.freeze()
        first = one_cycle(self.opt, slice(r.base_lr), moms, div_final=div_final, pct_start=.99)
        rest = one_cycle(self.opt, slice(r.base_lr/2/r.lr_mult, r.base_lr/2), moms, div, div_final, pct_start)
        own  = [f(o) for f,o in ((GradientClip, r.grad_clip), (EMA, r.ema)) if o]
        self.fit(r.freeze_epochs + epochs, wd=r.wd, cbs=[FineTuning(r.freeze_epochs, first, rest), *own, *L(cbs)],
                 reset_opt=reset_opt, start_epoch=start_epoch)

    @checked(n_epoch=COUNT, lr_max=RATE, div=POSITIVE, div_final=POSITIVE, pct_start=FRACTION, wd=number(0), moms=MOMS,
             reset_opt=FLAG, start_epoch=whole(0), cbs=CBS)
    def fit_one_cycle(self,
        n_epoch:int,     # epochs
        lr_max=None,     # highest learning rate: a number, a slice of the first to the last parameter group, or one per
                         # group; None: the learner's
        div=25.,         # highest rate divided by the first
        div_final=1e5,   # highest rate divided by the last
        pct_start=.25,   # share of the training in which the rate rises, in [0, 1]
        wd=None,         # weight decay; None: the learner's
        moms=None,       # momentum at the start, the highest rate and the end; None: the learner's
        cbs=None,
        reset_opt=False, # begin with a new optimizer
        start_epoch=0,   # epoch to go on from; those before it are skipped
    ):
        "fastai's `fit_one_cycle`"
        self.check_rates('lr_max', lr_max)
        Learner.fit_one_cycle(self, n_epoch, lr_max, div, div_final, pct_start, wd, moms, cbs, reset_opt, start_epoch)

    @checked(start_lr=ONE_RATE, end_lr=ONE_RATE, num_it=COUNT, stop_div=FLAG, show_plot=FLAG, epochs=COUNT)
    def lr_find(self,
        start_lr:float=None,  # first learning rate; None (default): a thousandth of the recipe's
        end_lr:float=None,    # last learning rate; None (default): a thousand times the recipe's
        num_it:int=None,      # batches; None (default): a tenth of those of `fine_tune(epochs)`, 100 at most
        stop_div:bool=True,   # stop when the loss diverges
        show_plot:bool=True,  # draw loss against learning rate
        suggest_funcs=(valley, steepest), # functions (rates, losses, number) -> suggested rate, as fastai's: one, a
                                          # tuple, or None
        epochs:int=10,        # of the training that follows: the test takes no longer than a tenth of it
    ) -> tuple:
        """fastai's learning rate range test (Smith, 2015, arXiv:1506.01186). Returns a named tuple: the rate that each
        of `suggest_funcs` suggests, `recipe`, the rate of `learn.recipe`, and `steps`, the number of batches; the plot
        has them too. On small data sets the suggestions vary by a factor of 3 to 10 with the range and the number of
        steps, and the recipe's is the one to begin with. Where a tenth of the training has fewer than 20 batches, too
        few for a curve, nothing is run and the suggestions are None, with a warning. Raises `ValueError` before it
        starts where `check_training` does, and where the loss diverges before there is a curve"""
        self.check_training()
        funcs = tuplify(suggest_funcs)
        names = [f.func.__name__ if isinstance(f, partial) else f.__name__ for f in funcs]
        Found = namedtuple('SuggestedLRs', [*names, 'recipe', 'steps'])
        base,num_it = self.recipe.base_lr,self._steps(epochs) if num_it is None else num_it
        if not num_it: return Found(*[None]*len(funcs), base, 0)
        start_lr,end_lr = start_lr or base/SPAN,end_lr or base*SPAN
        Learner.lr_find(self, start_lr, end_lr, num_it, stop_div, False, None)
        lrs,losses = self._curve(num_it)
        ended = len(self.recorder.lrs) < num_it or not np.isfinite(self.recorder.losses).all()
        if len(lrs) < 2 and ended: raise ValueError(
            f"the loss diverged within {num_it} steps from start_lr={start_lr:g}, so that there is no curve; begin at "
            "a lower rate, or pass stop_div=False")
        rates = [f(lrs, losses, num_it)[0] if len(lrs) > 1 else None for f in funcs]
        found = Found(*rates, base, len(self.recorder.lrs))
        if show_plot: plot_lr_find(lrs, losses, dict(zip([*names, 'recipe'], found)), found.steps)
        return found

    def _steps(self, epochs):
        "Batches of a range test before a training of `epochs`; 0, with a warning, where they are too few for a curve"
        n = min(MOST_STEPS, len(self.dls.train)*(epochs + self.recipe.freeze_epochs)//10)
        if n >= LEAST_STEPS: return n
        warn(f"lr_find: a tenth of a training of {epochs} epochs is {n} batches, and a curve needs {LEAST_STEPS}, so "
             f"that nothing was run; begin with the rate of learn.recipe, {self.recipe.base_lr:g}, or pass "
             f"num_it={LEAST_STEPS}")
        return 0

    def _curve(self, num_it):
        "Rates and smoothed losses of a range test, as fastai's functions want them: not the first and the last steps"
        lrs,losses = (torch.tensor(o, dtype=torch.float)[num_it//10:-5] for o in (self.recorder.lrs,
                                                                                  self.recorder.losses))
        n = int(losses.isfinite().long().cumprod(0).sum())
        return lrs[:n],losses[:n]

    def one_batch(self,
        i, # number of the batch
        b, # batch of inputs and targets
    ):
        "fastai's `one_batch`; torch's error where BatchNorm meets a single image says what to do"
        try: Learner.one_batch(self, i, b)
        except ValueError as e:
            if 'more than 1 value per channel' not in str(e): raise
            alone = len(self.dls.train.dataset) == 1
            raise ValueError(
                f"the model normalizes over the images of a batch (BatchNorm), so that it cannot train on a batch of "
                f"{find_bs(b)}: " + ("the training set has no more images; add some, and " if alone else "") +
                "raise bs to 2 or more, or drop the last batch (drop_last=True)") from e

    def _call_one(self, event_name):
        with trackers_waiting(self, event_name): Learner._call_one(self, event_name)

    def distrib_ctx(self,
        sync_bn:bool=True,      # on GPUs, compute BatchNorm's statistics over the batches of all processes
        in_notebook:bool=False, # ignored; an argument of fastai
        **kwargs,               # of accelerate's `Accelerator`
    ):
        """A while in which the learner trains, validates and predicts in the processes that `torchrun` or `accelerate
        launch` started: `with learn.distrib_ctx(): learn.fine_tune(5)`"""
        return in_processes(self, sync_bn, **kwargs)

    def to_detach(self,
        b,           # batch or tensor
        cpu=True,    # move it to the CPU
        gather=True, # ignored: see above
    ):
        "fastai's `to_detach` without its gathering: `Distributed` gathers after the last batch, each image once"
        return to_detach(b, cpu, gather=False)
