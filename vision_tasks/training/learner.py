"What all learners share: evaluate, annotate, thresholds that are kept, one `Normalize`, the encoder apart"
from __future__ import annotations
import os, traceback
from contextlib import contextmanager, nullcontext
from copy import copy
from pathlib import Path
import cloudpickle, numpy as np, torch
from torch import Tensor
from fastcore.basics import defaults
from fastcore.foundation import L
from fastcore.xtras import join_path_file
# `all`, for it patches fit_one_cycle, lr_find, to_fp16, summary, no_bar into Learner
from fastai.callback import schedule
from fastai.callback.all import MixHandler, SuggestionMethod, TrackerCallback
from fastai.learner import Learner, save_model
from fastai.optimizer import Adam
from fastai.torch_core import (find_bs, get_model, no_random, num_distrib, rank_distrib, to_detach, to_device,
                               trainable_params)
from ..arguments import (COUNT, FLAG, FRACTION, FUNCTION, POSITIVE, SHARE, brief, checked, checked_methods,
                         number, whole)
from ..data.annotation import Annotation
from ..data.image import wh
from ..data.blocks import grey_range_of
from ..data.items import FileImage
from ..data.views import View
from ..distributed import Distributed, in_processes
from ..models.kinds import MODULE
from ..models.layers import refuse_nan
from ..show.batches import FixedOrder
from ..show.sheet import show_predictions
from .checks import check_data, network_view
from .files import DECISIONS, DECISIONS_KEY, FILE, reading_file, saving_file
from .fine_tuning import FineTuning, one_cycle
from .images import IMAGES, picture_of
from .kinds import CBS, FASTAI, MOMS, ONE_RATE, RATE, check_ds_idx
from .scoring import Scoring, Stream, recorder_kept, trackers_waiting

__all__ = ['TaskLearner']
NO_DATA = "an exported learner leaves its data behind"

@checked_methods
class TaskLearner(Learner):
    "A fastai `Learner` that predicts `Annotation`s in pixels of the file, and whose thresholds go where it goes"
    annotate_options = ()    # those of 'tile' and 'postprocess' that make sense

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
        "`annotations` as the task's `*_dls` would take them; raises where it would"
        return annotations

    def mirror_back(self, probs, # probabilities of a batch of mirrored images
    ) -> Tensor:
        "Probabilities of mirrored pictures as those of the pictures"
        raise ValueError(f"{type(self).__name__} cannot average over mirrored pictures; leave tta out")

    def to_annotations(self,
        probs,    # batch of probabilities, as `probabilities` returns them
        pictures, # list of (path, (w, h)) of the image files
        thresh,   # in place of the learner's own: a number, or one per class; None: the learner's
    ) -> list[Annotation]:
        "A batch of probabilities as annotations"
        raise NotImplementedError

    lr_mult = 100.           # `fine_tune`'s ratio of the head's rate to the encoder's; fastai's
    not_mixed = None         # the targets that MixUp and CutMix cannot mix, for an error; None: they mix them

    # --- what all have

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
        Learner.fit(self, n_epoch, lr, wd, cbs, reset_opt, start_epoch)

    @checked(epochs=COUNT, base_lr=ONE_RATE, freeze_epochs=whole(0), lr_mult=POSITIVE, pct_start=SHARE, div=POSITIVE,
             div_final=POSITIVE, wd=number(0), moms=MOMS, reset_opt=FLAG, start_epoch=whole(0), cbs=CBS)
    def fine_tune(self,
        epochs:int,            # with all layers
        base_lr:float=2e-3,    # highest learning rate of the frozen epochs; of the others half of it
        freeze_epochs:int=1,   # epochs before these that train the last parameter group alone; 0: none
        lr_mult:float=None,    # the last group's rate divided by the first's; None (default): the task's own, since an
                               # encoder may have to learn more than new classes
        pct_start:float=.3,    # share of `epochs` in which the rate rises
        div:float=5.,          # of `epochs`: the highest rate divided by the first
        div_final:float=1e5,   # the highest rate divided by the last
        wd:float=None,         # weight decay; None: the learner's
        moms:tuple=None,       # momentum at the start, the highest rate and the end; None: the learner's
        cbs=None,              # further callbacks
        reset_opt:bool=False,  # begin with a new optimizer
        start_epoch:int=0,     # of all epochs, where a training goes on
    ):
        """fastai's `fine_tune`, to the same weights, but as one training of `freeze_epochs + epochs` epochs: one log,
        one best value. A callback that ends training, such as `EarlyStoppingCallback`, ends it in the frozen epochs
        too. Raises `ValueError` before it starts where `check_training` does"""
        self.check_training(cbs)   # before anything is frozen
        lr_mult = self.lr_mult if lr_mult is None else lr_mult
        moms = self.moms if moms is None else moms
        self.freeze()
        first = one_cycle(self.opt, slice(base_lr), moms, div_final=div_final, pct_start=.99)
        rest = one_cycle(self.opt, slice(base_lr/2/lr_mult, base_lr/2), moms, div, div_final, pct_start)
        self.fit(freeze_epochs + epochs, wd=wd, cbs=[FineTuning(freeze_epochs, first, rest), *L(cbs)],
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

    @checked(start_lr=ONE_RATE, end_lr=ONE_RATE, num_it=COUNT, stop_div=FLAG, show_plot=FLAG)
    def lr_find(self,
        start_lr=1e-7,                         # first learning rate
        end_lr=10,                             # last learning rate
        num_it:int=100,                        # batches
        stop_div:bool=True,                    # stop when the loss diverges
        show_plot:bool=True,                   # draw loss against learning rate
        suggest_funcs=SuggestionMethod.Valley, # fastai's functions (rates, losses, number) -> suggested rate; one or a
                                               # tuple
    ):
        """fastai's `lr_find`. Raises `ValueError` before it starts where `check_training` does, and where the loss
        diverges before there is a curve"""
        self.check_training()
        try: return Learner.lr_find(self, start_lr, end_lr, num_it, stop_div, show_plot, suggest_funcs)
        except IndexError as e:
            # of the suggestions, whose curve has no points; another one, as of the data, is no matter of rates
            if traceback.extract_tb(e.__traceback__)[-1].filename != schedule.__file__: raise
            raise ValueError(f"the loss diverged within {num_it} steps from start_lr={start_lr:g}, so that there is no "
                             "curve; begin at a lower rate, or pass stop_div=False") from e

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
        with MixUp or CutMix where the task's targets cannot be mixed; `RuntimeError` in one of several processes that
        do not train as one"""
        if num_distrib() > 1 and not hasattr(self, 'distributed'):
            raise RuntimeError(f"this is one of {num_distrib()} processes, each of which would train a model of its "
                               "own; train them as one: with learn.distrib_ctx(): learn.fine_tune(...)")
        kinds  = [o if isinstance(o, type) else type(o) for o in (*self.cbs, *L(cbs))]
        mixing = [o for o in kinds if issubclass(o, MixHandler)]
        if mixing and self.not_mixed is not None: raise ValueError(
            f"{mixing[0].__name__} mixes images and one label each, which {self.not_mixed} cannot follow: drop it; "
            "JointTransform and `batch_tfms` augment this task")
        train = self.dls.train
        if not hasattr(train, '__len__') or getattr(train, 'n', 0) is None or len(train): return
        if not len(train.dataset): raise ValueError(f"there are no images to train on: {NO_DATA}")
        raise ValueError(f"the training DataLoader gives no batch: bs={train.bs} is more than its "
                         f"{len(train.dataset)} images, and it drops the last batch; make it with a smaller bs, or "
                         "with drop_last=False")

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
        "fastai's `to_detach` without its gathering: `Distributed` gathers when a set is through, each picture once"
        return to_detach(b, cpu, gather=False)

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

    def export(self,
        fname='export.pkl',        # file name below `path`
        pickle_module=cloudpickle, # module that pickles the learner
        pickle_protocol:int=2,     # of the pickle module
    ):
        """fastai's `export`, whose file is written whole or not at all; the processes that trained it do not go along.
        The learner itself keeps its data and its optimizer, also where `OSError` says that the file cannot be
        written"""
        if rank_distrib(): return
        file,dls,opt = self.path/fname,self.dls,self.opt
        try:
            with saving_file(file) as part, self.removed_cbs(self._grab_cbs(Distributed)):
                Learner.export(self, part.resolve(), pickle_module, pickle_protocol)
        finally: self.dls,self.opt = dls,opt

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
            "pixels would not come back to the image file; leave it out, or resize with JointTransform(size)")

    def items_of_batch(self,
        start, # images in the batches before
        n,     # images in the batch
    ) -> list[Annotation]:
        """Annotations `start` to `start + n` in the order in which the current DataLoader gives them; none for a batch
        behind its last, as `TensorBoardCallback` shows one, or of a list of batches, as of `get_preds(dl=[b])`"""
        return [self.dl.items[i] for i in getattr(self.dl, '_DataLoader__idxs', [])[start:start+n]]

    @checked(tta=FLAG, postprocess=FUNCTION)
    def annotate(self,
        items,            # list of Annotation, path, bytes of an image file, PIL image, array (h, w), (h, w, 1) or
                          # (h, w, 3) uint8, or tensor (3, h, w) uint8; or one of these
        thresh=None,      # in place of the learner's own: a number, or one per class
        bs:int=None,      # images at a time; None = as in training
        tile=None,        # (w, h) of tiles, for tasks that predict pixel by pixel
        tta:bool=False,   # average with the mirrored images
        postprocess=None, # (probs, image) -> probs at the file's size, for tasks that predict pixel by pixel
    ) -> list[Annotation]:
        """Predictions for `items`: class names and scores, in pixels of the files, in the order of `items`; batch by
        batch, with a progress bar.

        Files of large JPEGs are decoded at a reduced size, as in training; so is a JPEG that `Image.open` gave and
        whose pixels nobody has asked for. Pixels that are decoded already (arrays, tensors, loaded images) differ from
        those at the network's input by about 1 % on average, and scores differ a little: pass paths for the scores of
        `evaluate`.

        `ValueError` for a model that diverged. `learn.recorder` keeps the last training"""
        items = self.pictures_of(items)
        for name,v in (('tile', tile), ('postprocess', postprocess)):
            if v is not None and name not in self.annotate_options:
                raise ValueError(f"{name} is for tasks that answer pixel by pixel; "
                                 f"{type(self).__name__} answers otherwise: leave it out")
        out = []
        def gather(probs):
            pictures = [picture_of(o) for o in items[len(out):len(out)+len(probs)]]
            out.extend(self.to_annotations(probs, pictures, thresh))
        self.stream(items, gather, bs, tta)
        return out

    def pictures_of(self, items, # what `annotate` takes
    ) -> list:
        "What `annotate` was given, as a list; raises for a folder, and for what is no image"
        if isinstance(items, IMAGES): items = [items]
        try: items = list(items)
        except TypeError: items = [items]
        for i,o in enumerate(items):
            if not isinstance(o, IMAGES) or isinstance(o, str) and not o: raise ValueError(
                f"items, number {i}: expected a path, an Annotation, bytes of an image file, a PIL image, an array or "
                f"a tensor, got {brief(o)}")
        folder = next((o for o in items if isinstance(o, (str, os.PathLike)) and os.path.isdir(o)), None)
        if folder is not None:
            raise ValueError(f"{folder} is a folder; pass its pictures: get_image_files({str(folder)!r})")
        return items

    def stream(self,
        items,     # list as `pictures_of` returns it
        f,         # function of the probabilities of a batch
        bs=None,   # images at a time; None: as in training
        tta=False, # average with the mirrored images
    ):
        "Give `f` the probabilities of `items`, batch by batch in their order, and keep none"
        if not items: return
        dl = self.dls.test_dl(items, bs=min(bs or self.dls.bs, len(items)), rm_type_tfms=0)
        self.get_preds(dl=dl, with_preds=False, with_targs=False, reorder=False, cbs=Stream(f, tta))

    def predict(self,
        item,                  # an Annotation, path, bytes, PIL image, array or tensor, as `annotate` takes them
        rm_type_tfms=0,        # number of type transforms to skip; as of fastai's `test_dl`
        with_input:bool=False, # return the input first
    ):
        "fastai's `predict`, of one item as `annotate` takes it: the prediction, the decisions, the probabilities"
        self.pictures_of([item])
        res = Learner.predict(self, item, rm_type_tfms, with_input)
        refuse_nan(res[-1])
        return res

    def tta(self,
        ds_idx=1, dl=None,
        n=4, item_tfms=None, batch_tfms=None, beta=.25, use_max=False, # ignored: always an error
    ):
        """fastai's `tta` averages predictions over augmented images as if nothing in them had moved; where predictions
        have places it raises `ValueError`"""
        raise ValueError("tta averages over images whose points, boxes and pixels have moved; "
                         "use annotate(items, tta=True), which turns the predictions for mirrored images back")

    @checked(max_n=COUNT, shuffle=FLAG)
    def show_results(self,
        ds_idx:int=1,      # of the set
        dl=None,           # in place of it: a DataLoader, or a list of `Annotation` or of paths
        max_n:int=9,       # images to draw at most
        shuffle:bool=True, # draw images at random
        **kwargs,          # of the DataLoader's `show_results`: `ncols`, ...
    ):
        "Draw images with ground truth and prediction; with the prediction alone where there is no ground truth"
        check_ds_idx(ds_idx, self.dls)
        if isinstance(dl, Annotation): dl = [dl]
        if dl is None: dl = self.set_with_images(ds_idx)
        elif isinstance(dl, (list, tuple, L)):
            truth = all(isinstance(o, Annotation) for o in dl)
            dl = self.annotated_dl(dl) if truth else self.dls.test_dl(list(dl), rm_type_tfms=0)
        dl = dl.new(shuffle=shuffle)
        if not self.has_truth(dl):
            self.show_annotations([dl.items[i] for i in dl.get_idxs()[:max_n]], **kwargs)
            return
        b = dl.one_batch()
        probs,dec = self._answers(b)
        dl.show_results(b, dec, max_n=max_n, probs=probs, **kwargs)

    def show_annotations(self,
        items,    # what `annotate` takes
        ncols:int=None,
        **kwargs, # ignored
    ):
        "Draw `items`, as `annotate` takes them, with their predictions in pixels of the files"
        images = [FileImage.create(o, grey_range_of(self.dls)) for o in items]
        names = dict(point_names=self.dls.vocab, skeleton=self.dls.skeleton) if hasattr(self.dls, 'skeleton') else {}
        show_predictions(self.annotate(items), images, ncols, vocab=self.classes, **names)

    @property
    def classes(self) -> list:
        "The names of the classes, or of the points"
        return list(self.dls.vocab)

    def _answers(self, b):
        "Probabilities and decisions of batch `b`; without metrics, for some want the annotations behind a batch"
        with self.scored_by([]): probs,_,dec = self.get_preds(dl=[b], with_decoded=True)
        return probs,dec

    @checked(k=COUNT, largest=FLAG)
    def plot_top_losses(self,
        k:int=9,           # images to draw at most
        ds_idx:int=1, dl=None,
        largest:bool=True, # True: the largest losses; False: the smallest
        **kwargs,          # of the DataLoader's `show_results`: `ncols`, ...
    ):
        "Draw the `k` pictures with the largest (or smallest) loss, that first"
        dl = self.whole_dl(ds_idx, dl)
        *_,losses = self.get_preds(dl=dl, with_loss=True, with_preds=False, with_targs=False)
        losses,idxs = losses.topk(min(k, len(losses)), largest=largest)
        b = dl.new(get_idxs=FixedOrder(idxs.tolist()), bs=len(idxs)).one_batch()
        probs,dec = self._answers(b)
        dl.show_results(b, dec, max_n=len(idxs), probs=probs, losses=losses.tolist(), **kwargs)

    @checked(file=FILE)
    def save(self,
        file,     # name below `path/model_dir`, without suffix; or an open binary file
        **kwargs, # of fastai's `save_model`: `with_opt`, `pickle_protocol`
    ):
        """fastai's `save`; thresholds and temperature are saved too, as metadata of the state dict, so that fastai and
        torch read the file as any other. It is written whole or not at all"""
        note = lambda module, state, prefix, metadata: metadata.update({DECISIONS_KEY: self.decisions()})
        hook = get_model(self.model).register_state_dict_post_hook(note)
        try:
            if not isinstance(file, (str, Path)) or rank_distrib(): return Learner.save(self, file, **kwargs)
            file = join_path_file(file, self.path/self.model_dir, ext='.pth')
            with saving_file(file) as part: save_model(part, self.model, self.opt, **kwargs)
        finally: hook.remove()
        return file

    @checked(file=FILE)
    def load(self,
        file,        # name as `save` takes it, or the path that it returns; or an open binary file
        device=None, # where the weights go; None: the device of the dls
        **kwargs,    # of fastai's `load_model`: `strict`, `with_opt`, ...
    ):
        """fastai's `load`, which also takes the path that `save` returns, and restores thresholds and temperature; a
        file without these, as fastai writes it, leaves them as they are. Raises `ValueError` that names a file which is
        cut, damaged or of another kind, and leaves the learner as it is"""
        file,found,begun = Path(file) if isinstance(file, (str, os.PathLike)) else file,{},[]
        if isinstance(file, Path) and file.suffix == '.pth' and file.is_file(): file = file.resolve().with_suffix('')
        whole = join_path_file(file, self.path/self.model_dir, ext='.pth') if isinstance(file, Path) else file
        def note(module, state, prefix, metadata, *_):
            begun.append(True)   # the file has been read
            found.update(metadata.get(DECISIONS_KEY, {}))
        hook = get_model(self.model).register_load_state_dict_pre_hook(note)
        try:
            with reading_file(whole, 'learn.save', lambda e: not begun):
                Learner.load(self, file, device=device, **kwargs)
        finally: hook.remove()
        for k,v in found.items():
            if hasattr(self.loss_func, k): setattr(self.loss_func, k, torch.tensor(v) if isinstance(v, list) else v)
        return self

    def decisions(self) -> dict:
        "Thresholds and temperature of the loss, those that it has: numbers, or lists of one per class"
        res = {k: getattr(self.loss_func, k) for k in DECISIONS if hasattr(self.loss_func, k)}
        res = {k: v.tolist() if isinstance(v, (Tensor, np.ndarray, np.generic)) else v for k,v in res.items()}
        return {k: v for k,v in res.items() if isinstance(v, (int, float, list))}
