"The learner of all tasks: what a task fills in, and evaluation in pixels of the image files"
from __future__ import annotations
from contextlib import contextmanager, nullcontext
from copy import copy
import numpy as np
from torch import Tensor
from fastcore.basics import defaults
from fastcore.foundation import L
from fastai.callback.all import TrackerCallback
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.optimizer import Adam
from fastai.torch_core import no_random, to_device, trainable_params
from ..arguments import FUNCTION, checked, checked_methods
from ..data.annotation import Annotation
from ..data.image import wh
from ..data.views import View
from ..models.kinds import MODULE
from .build import normalize_once
from .checks import check_data, network_view
from .compiling import Compiling
from .files import Saving
from .fitting import NO_DATA, Fitting
from .predicting import Predicting
from .kinds import FASTAI, check_ds_idx
from .recipes import Recipe
from .scoring import Scoring, recorder_kept

__all__ = ['TaskLearner']

@checked_methods
class TaskLearner(Fitting, Predicting, Saving, Compiling, Learner):
    "A fastai `Learner` that predicts `Annotation`s in pixels of the file, and whose thresholds go where it goes"

    @checked(**FASTAI, model=MODULE, loss_func=FUNCTION)
    def __init__(self,
        dls,                       # `DataLoaders` of the task
        model,                     # `nn.Module` from a batch of images to the raw output of the task
        loss_func=None,            # loss with `activation` and `decodes`; None: the one of the training set
        opt_func=Adam,             # parameter groups -> fastai optimizer
        lr=defaults.lr,            # learning rate where `fit` gets none
        splitter=trainable_params, # model -> list of parameter groups; `freeze` freezes all but the last
        cbs=None,                  # fastai callbacks of every training and validation
        metrics=None,              # a metric or a list of them, computed on the validation set after each epoch
        path=None,                 # folder of `export`, and of `model_dir`; None: that of the dls
        model_dir='models',        # folder of `save` and `load`, below `path`
        wd=None,                   # weight decay; None: the optimizer's own
        wd_bn_bias=False,          # apply weight decay to BatchNorm and biases too
        train_bn=True,             # train BatchNorm in frozen groups too
        moms=(.95, .85, .95),      # momentum at the start, at the highest rate and at the end of `fit_one_cycle`
        default_cbs=True,          # add fastai's default callbacks (training, progress bar, recorder)
    ):
        super().__init__(dls, model, loss_func, opt_func, lr, splitter, cbs, metrics, path, model_dir, wd, wd_bn_bias,
                         train_bn, moms, default_cbs)

    # --- what a task fills in

    def eval_metrics(self) -> list:
        "Metrics that `evaluate` adds to the learner's own"
        return []

    def probabilities(self, pred, # raw output of the model for a batch
    ) -> Tensor:
        "Raw output of the model as probabilities"
        return self.loss_func.activation(pred.as_subclass(Tensor).float())

    def prepared(self, annotations, # list[Annotation], checked by `check_data`
    ) -> list[Annotation]:
        "`annotations` as the task's `*_dls` prepares them; raises where it does"
        return annotations if self.task is None else self.task.prepare(annotations, self.classes)[0]

    def mirror_back(self, probs, # probabilities of a batch of mirrored images
    ) -> Tensor:
        "Probabilities of mirrored images as those of the images"
        raise ValueError(f"{type(self).__name__} cannot average over mirrored images; drop tta")

    def to_annotations(self,
        probs,    # batch of probabilities, as `probabilities` returns them
        images, # list of (path, (w, h)) of the image files
        thresh,   # in place of the learner's own: a number, or one per class; None: the learner's
    ) -> list[Annotation]:
        "A batch of probabilities as annotations"
        raise NotImplementedError

    task   = None            # the `Task` of the class
    recipe = Recipe()        # defaults of `fine_tune`; the task's and the architecture's
    stats  = None            # (mean, std) with which this learner's images are normalized; None: as the dls do
    not_mixed = None         # the targets that MixUp and CutMix cannot mix, for an error; None: they mix them

    # --- what all have

    def get_preds(self,
        ds_idx:int=1,
        dl=None,                 # in place of that set: a DataLoader; None (default): the set
        with_input:bool=False,   # return the inputs too
        with_decoded:bool=False, # return the decoded predictions too
        with_loss:bool=False,    # return the loss of each item too
        act=None,                # activation in place of the loss function's; None: that one
        inner:bool=False,        # called inside another loop: start no new fit and keep no recorder
        reorder:bool=True,       # return predictions in the order of the items, not of the batches
        cbs=None,                # further fastai callbacks
        **kwargs,                # of fastai's `GatherPredsCallback`: `with_preds`, `with_targs`, `save_preds`, ...
    ):
        """fastai's `get_preds`, in several processes too: each has the predictions of all, in the order of the set.
        `learn.recorder` keeps the last training"""
        if dl is None: self.set_with_images(ds_idx)
        # each process shuffles in its own way, and would bring back its own order
        if reorder and getattr(dl, 'shuffle', False) and hasattr(self, 'distributed'): dl = dl.new(shuffle=False)
        with nullcontext() if inner else recorder_kept(self):
            return Learner.get_preds(self, ds_idx, dl, with_input, with_decoded, with_loss, act, inner, reorder, cbs,
                                     **kwargs)

    def _do_epoch_train(self):
        self.normalize_here(self.dls.train)
        Learner._do_epoch_train(self)

    def _do_epoch_validate(self, ds_idx=1, dl=None):
        self.normalize_here(self.dls[ds_idx] if dl is None else dl)
        Learner._do_epoch_validate(self, ds_idx, dl)

    def normalize_here(self, dl):
        "Let `dl` normalize for this model: another learner on the same DataLoaders may have changed that"
        if self.stats is None or not hasattr(dl, 'after_batch'): return
        own = [o for o in dl.after_batch.fs if isinstance(o, Normalize)]
        mean,std = self.stats
        as_stats = lambda o: tuple(v.flatten().tolist() for v in (o.mean, o.std))
        same = not own if mean is None else len(own) == 1 and np.allclose(as_stats(own[0]), (mean, std))
        if not same: normalize_once([dl], mean, std)

    def validate(self,
        ds_idx:int=1,
        dl=None, # in place of that set: a DataLoader; None (default): the set
        cbs=None,
    ):
        "fastai's `validate`: the loss and the metrics as a list"
        if dl is None: self.set_with_images(ds_idx)
        return Learner.validate(self, ds_idx, dl, cbs)

    def evaluate(self,
        ds_idx:int=1, # of the set: 0 for training, 1 for validation
        dl=None,      # in place of it: a DataLoader with ground truth, or a list of `Annotation`, such as a test set
    ) -> dict:
        """The loss and all scores, by name; the learner's own metrics first. Batches stream: no logits are kept.
        `learn.recorder` keeps the last training"""
        dl,have = self.whole_dl(ds_idx, dl),{m.name for m in self.metrics}
        metrics = [*self.own_metrics(), *(m for m in self.eval_metrics() if m.name not in have)]
        with self.scored_by(metrics):
            return dict(zip(['valid_loss', *(m.name for m in metrics)], list(self.validate(dl=dl))))

    def own_metrics(self) -> list:
        "The learner's metrics as copies, so that their counts of the last epoch stay"
        return [copy(m) for m in self.metrics]

    @contextmanager
    def scored_by(self, metrics, # list of metrics
    ):
        """A while in which `metrics` stand in place of the learner's own, loggers and trackers are idle, and a model
        that diverged is refused; after it the recorder is as it was"""
        old,trackers = self.metrics,[cb for cb in self.cbs if isinstance(cb, TrackerCallback)]
        # a tracker insists on its metric even while it is idle
        with recorder_kept(self), self.removed_cbs(trackers), self.added_cbs([Scoring()]):
            self.metrics = metrics
            try: yield
            finally: self.metrics = old

    def set_with_images(self, ds_idx:int=1):
        "The `ds_idx`-th DataLoader; `ValueError` where there is none, or it has no images, as in an exported learner"
        check_ds_idx(ds_idx, self.dls)
        if not len(self.dls[ds_idx].dataset):
            raise ValueError(f"there are no images in this set: {NO_DATA}; pass dl=annotations, a list of `Annotation`")
        return self.dls[ds_idx]

    def has_truth(self, dl, # DataLoader of the task
    ) -> bool:
        "Whether `dl` gives targets beside the images"
        return not hasattr(dl.dataset, 'tls') or len(dl.dataset.tls) > self.dls.n_inp

    def annotated_dl(self, annotations, # list[Annotation] with ground truth
    ):
        "A DataLoader of `annotations`, checked and prepared as the task's `*_dls` does"
        return self.dls.test_dl(self.prepared(check_data(annotations)), with_labels=True)

    def whole_dl(self, ds_idx:int=1, dl=None):
        "The `ds_idx`-th set, or `dl`, which may be a list of annotations; in order, to its end, without augmentation"
        check_ds_idx(ds_idx, self.dls)
        if isinstance(dl, Annotation): dl = [dl]
        if isinstance(dl, (list, tuple, L)): return self.annotated_dl(dl)
        src = self.set_with_images(ds_idx) if dl is None else dl
        if not self.has_truth(src):
            raise ValueError("these are images without ground truth: pass dl=annotations, a list of `Annotation`")
        if dl is None and ds_idx == 0: return self.dls.test_dl(self.dls.train.items, with_labels=True)
        return src.new(shuffle=False, drop_last=False)

    in_pixels = False        # whether predictions are pixels of the network's input, which must come back to the file

    def valid_view(self, size, # (w, h) of the image file in pixels
    ) -> View:
        "`network_view` of these data, which `annotate` undoes. `ValueError` where that cannot be undone"
        return network_view(self.dls, size)

    def check_view(self):
        "Raise `ValueError` now where the size of the network's input is not what `valid_view` computes"
        a = next(iter(self.dls.valid.items if len(self.dls.valid.dataset) else []), None)
        if not isinstance(a, Annotation): return
        want = self.valid_view(a.size).out
        with no_random():        # fastai's augmentation draws random numbers for the validation set too
            dl = self.dls.test_dl([a], bs=1, num_workers=0)
            x = dl.after_batch(to_device(dl.do_batch([dl.do_item(0)]), dl.device))[0]
        came = x.shape[-1],x.shape[-2]
        if came != want: raise ValueError(
            f"{a.path}: the transforms bring the image to {wh(came)}, where JointTransform, Resize and batch "
            f"transforms with a size would make it {wh(want)}: another transform changes the size, and predictions in "
            "pixels would not come back to the image file; drop it, or resize with JointTransform(size)")

    def items_of_batch(self,
        start, # images in the batches before
        n,     # images in the batch
    ) -> list[Annotation]:
        """Annotations `start` to `start + n` in the order in which the current DataLoader gives them; none for a batch
        behind its last, as `TensorBoardCallback` shows one, or of a list of batches, as of `get_preds(dl=[b])`"""
        return [self.dl.items[i] for i in getattr(self.dl, '_DataLoader__idxs', [])[start:start+n]]

    @property
    def classes(self) -> list:
        "The names of the classes, or of the points"
        return list(self.dls.vocab)
