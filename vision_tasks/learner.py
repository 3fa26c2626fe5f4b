"What all learners share: evaluate, annotate, thresholds that are kept, one `Normalize`, the encoder apart"
from __future__ import annotations
import os, pickle, traceback, zipfile
from contextlib import contextmanager, nullcontext
from copy import copy
from pathlib import Path
import cloudpickle, numpy as np, torch
from torch import Tensor, nn
from fastcore.basics import defaults
from fastcore.foundation import L
from fastcore.xtras import join_path_file
# `all`, for it patches fit_one_cycle, lr_find, to_fp16, summary, no_bar into Learner
from fastai.callback import schedule
from fastai.callback.all import Callback, MixHandler, SuggestionMethod, TrackerCallback
from fastai.data.transforms import Normalize
from fastai.learner import Learner, Metric, load_learner as load_fastai_learner, save_model
from fastai.optimizer import Adam
from fastai.torch_core import (apply_init, find_bs, get_model, no_random, num_distrib, params, rank_distrib, to_detach,
                               to_device, trainable_params)
from fastai.vision.core import TensorImage, imagenet_stats
from fastai.vision.learner import create_head
from PIL import Image
from .arguments import (COUNT, FLAG, FRACTION, FUNCTION, PATH, POSITIVE, SHARE, Kind, brief, came, checked,
                        checked_methods, choice, either, number, several, whole)
from .data.annotation import ANNOTATIONS, Annotation, AnnotationError, vocab_of, wh
from .data.blocks import FileImage, array_size, check_labels, clip_objects, grey_range_of
from .data.check import check_images
from .data.image import image_size, shown_size
from .data.splits import AnnotationSplitter
from .data.transforms import View, valid_step
from .data.writing import replacing
from .distributed import Distributed, in_processes
from .fine_tuning import FineTuning, one_cycle
from .models.encoders import create_encoder
from .models.layers import refuse_nan
from .models.registry import get_arch, list_archs
from .show import FixedOrder, show_predictions
from .task_arguments import CBS, FASTAI, LOADERS, MODULE, MOMS, ONE_RATE, RATE, check_ds_idx
from .warning import warn

# the rest is for the tasks
__all__ = ['TaskLearner', 'EncoderHead', 'encoder_splitter', 'one_normalize', 'load_learner']

# --- data

def splitter_of(block_kwargs, valid_pct, seed):
    "The splitter, taken out of `block_kwargs`, whose results are checked; the default where there is none"
    given = block_kwargs.pop('splitter', None)
    if given is None: return AnnotationSplitter(valid_pct, seed)
    given = FUNCTION('splitter', given)
    def split(annotations):
        res = given(annotations)
        try: train,valid = ([int(i) for i in o] for o in res)
        except (TypeError, ValueError): raise ValueError(
            f"splitter: expected two lists of indices, of train and of valid, got {came(res)}") from None
        bad = next((i for i in (*train, *valid) if not 0 <= i < len(annotations)), None)
        if bad is None: return train,valid
        raise ValueError(f"splitter: expected indices of the {len(annotations)} annotations, got {bad}")
    return split

def task_dls(block, annotations, vocab, bs, path, num_workers, device, check=False):
    """The DataLoaders of `block` over `annotations`, checked first for all that would fail in the middle of an epoch;
    with `check` the images of both sets are decoded"""
    gone = [a.path for a in annotations if a.path is None or not a.path.is_file()]
    if gone:
        raise AnnotationError(f"{gone[0]}: no such image file ({len(gone)} of {len(annotations)} are missing); "
                              "mend the paths, or leave these annotations out")
    if vocab is not None: check_labels(annotations, vocab)
    train,valid = block.splitter(annotations)
    for name,idxs in (('train', train), ('valid', valid)):
        if not len(idxs):
            raise AnnotationError(f"the splitter puts none of the {len(annotations)} pictures into {name}; "
                                  "both sides need at least one")
    if check: check_images([annotations[i] for i in sorted({*train, *valid})])
    return block.dataloaders(annotations, path=path, bs=min(bs, len(train)), num_workers=num_workers, device=device)

def warn_tiny(dls):
    "`dls`; one warning counts their boxes below a pixel of the network's input, where `JointTransform` drops them"
    scales,n,images,total,first = {},0,0,0,None
    for a in (a for dl in dls for a in dl.items if a.bboxes is not None):
        if a.size not in scales:
            try: scales[a.size] = np.abs(network_view(dls, a.size).matrix[:,:2]).sum(1)
            except ValueError: return dls    # what cannot be undone is told when the learner is made
        sides = (a.bboxes[:,2:] - a.bboxes[:,:2])*scales[a.size]
        tiny = int((sides < 1).any(1).sum())
        n,images,total = n + tiny,images + (tiny > 0),total + len(sides)
        if tiny and first is None: first = a,sides[(sides < 1).any(1)][0]
    if not n: return dls
    a,(w,h) = first
    warn(f"{n} of {total} boxes, in {images} images, are less than one pixel wide or high on the network's "
         f"input of {wh(network_view(dls, a.size).out)}, as one of {w:.2f} x {h:.2f} pixels in {a.path}: they "
         "are not learned, and `evaluate` counts them as missed; choose a larger size, cut the images into "
         "tiles, or drop such boxes")
    return dls

def network_view(dls, size) -> View:
    """How an image of `size` (w, h) is laid on the network's input of the validation set of `dls`, by the transforms of
    items and of batches together. `ValueError` where that cannot be undone"""
    view,fixed = View((0, 0, *size), (0, 0, *size), tuple(size)),False
    for o in dls.valid.after_item.fs:
        if (step := valid_step(o, view.out)) is not None: view,fixed = view.then(step),True
    for o in dls.valid.after_batch.fs:
        if (step := valid_step(o, view.out)) is None: continue
        if not fixed: raise ValueError(
            f"{type(o).__name__} resizes batches whose images were padded to the largest of them, so predictions "
            "do not come back to the image file: bring all images to one size, item_tfms=JointTransform(size)")
        view = view.then(step)
    return view

def check_data(annotations) -> list[Annotation]:
    "`annotations` as a list; raise where it is empty, or holds something else"
    annotations = ANNOTATIONS('annotations', annotations)
    if annotations: return annotations
    raise AnnotationError("the data set is empty: expected annotations, got none; look at what the reader was given")

def check_vocab(annotations, vocab):
    "`vocab` as a list, or the names that occur; raise where there is none, or one twice"
    vocab = vocab_of(annotations) if vocab is None else list(vocab)
    twice = sorted({o for o in vocab if vocab.count(o) > 1})
    if twice: raise ValueError(f"vocab has duplicate names: {twice}; every class needs a name of its own")
    if not vocab:
        raise AnnotationError(f"none of the {len(annotations)} annotations has a label, so there is nothing to learn; "
                              "was the reader told the label column?")
    return vocab

def clipped(annotations) -> list[Annotation]:
    "`annotations` with their boxes clipped to the pictures, those without an area gone; one warning counts both"
    res = [a if a.bboxes is None else clip_objects(a) for a in annotations]
    changed = [a for a,b in zip(annotations, res) if a is not b]
    if changed:
        gone = sum(len(a.labels) for a in annotations) - sum(len(b.labels) for b in res)
        warn(f"boxes of {len(changed)} of {len(res)} pictures reach outside the picture, or have no area: "
             f"they were clipped, and {gone} objects without an area in the picture were dropped. The first "
             f"is in {changed[0].path}; `check_annotations` lists them")
    return res

# --- model

STATS  = several(number(), "a number for each channel", least=1)

@checked(model=MODULE)
def encoder_splitter(model) -> L:
    "Two parameter groups: `model.encoder`, which may be pretrained, and all the rest; without an encoder one group"
    if getattr(model, 'encoder', None) is None: return L([params(model)])
    body = {id(p) for p in model.encoder.parameters()}
    return L(params(model.encoder), [p for p in model.parameters() if id(p) not in body])

def task_model(task, arch, encoder, n_out, head, pretrained=True, arch_kwargs=None):
    """The model for `arch` or, another word for it, `encoder`; 'resnet34' where both are None. An `nn.Module` as it is;
    a name registered for `task`; an encoder (torchvision's or timm's name, torchvision's builder) under
    `head(channels, n_out, **arch_kwargs)`; or what any other callable builds"""
    if arch is not None and encoder is not None:
        raise ValueError(f"arch={arch!r} and encoder={encoder!r}: the net of this task is an encoder under a head, "
                         "so give one of them")
    arch,kw = arch or encoder or 'resnet34',dict(arch_kwargs or {})
    if isinstance(arch, nn.Module): return arch
    named = isinstance(arch, str) or getattr(arch, '__module__', '').startswith('torchvision.')
    try:
        if isinstance(arch, str) and arch in list_archs(task):
            return get_arch(arch, task)(n_out, pretrained=pretrained, **kw)
        if named: return EncoderHead(create_encoder(arch, pretrained=pretrained, pyramid=False), head, n_out, kw)
        if callable(arch): return arch(n_out, **kw)
    except TypeError as e:
        if 'unexpected keyword' not in str(e): raise
        raise ValueError(f"arch_kwargs: {e}; the head of this task takes other ones") from e
    raise ValueError(f"arch: expected a name, a builder or an nn.Module, got {brief(arch)}; "
                     f"names: list_archs({task!r}), list_encoders(), timm.list_models()")

def takes_pretrained(arch) -> bool:
    "Whether `arch` is told `pretrained`: a name, or a builder of torchvision's or of ours; one's own net is not"
    if arch is None or isinstance(arch, str): return True
    theirs_or_ours = getattr(arch, '__module__', '').startswith(('torchvision.', __package__))
    return theirs_or_ours and not isinstance(arch, nn.Module)

def came_pretrained(arch, pretrained) -> bool:
    "Whether the net has weights that `pretrained` brought; what was not told of it comes as it is"
    return pretrained is not False and takes_pretrained(arch)

class EncoderHead(nn.Module):
    "An encoder's last map, (b, c, h, w), through `head(c, n_out)`, (b, n_out)"
    def __init__(self, encoder, head, n_out, kw):
        super().__init__()
        self.encoder = encoder
        self.head = head(encoder.channels[-1], n_out, **kw)
    def forward(self, x): return self.head(self.encoder(x))

def pooled_head(c, n_out, **kwargs):
    """fastai's head, (b, c, h, w) -> (b, n_out): average and maximum over the map, two linear layers with BatchNorm and
    dropout"""
    head = create_head(c, n_out, **kwargs)
    apply_init(head, nn.init.kaiming_normal_)
    return head

class NormalizeInPlace(Normalize):
    "fastai's `Normalize` without its two copies of the batch, which `IntToFloatTensor` made for us anyway"
    def encodes(self, x:TensorImage): return x.sub_(self.mean).div_(self.std)

@checked(dls=LOADERS, mean=either(choice(None), STATS),
         std=either(choice(None), several(POSITIVE, "a number above 0 for each channel", least=1)))
def one_normalize(dls, mean, std):
    """Let every DataLoader of `dls` normalize once, with `mean` and `std`; what normalized before is replaced. None:
    they do not normalize"""
    if (mean is None) != (std is None): raise ValueError(
        f"mean and std: expected both or neither, got {brief(mean)} and {brief(std)}")
    for dl in dls.loaders:
        pipe = dl.after_batch
        pipe.fs = L(o for o in pipe.fs if not isinstance(o, Normalize))
        if mean is None: continue
        norm = NormalizeInPlace.from_stats(mean, std, cuda=False)
        for o in norm.parameters: setattr(norm, o, getattr(norm, o).to(dl.device or 'cpu'))
        pipe.add(norm)

def input_stats(model, normalize=True) -> tuple:
    """(mean, std) with which images are normalized for `model`, each None where they are not: what `normalize` says; if
    that is True those of the model, else of its encoder, else ImageNet's, of which a warning tells where the model is
    a user's own. Raises `ValueError` for statistics that are no `(mean, std)`, or for a model that normalizes itself"""
    if normalize is None or normalize is False: return None,None
    if normalize is True:
        told = _told_stats(model)
        if told is not None: return told.mean,told.std
        if not type(model).__module__.startswith(__package__):
            warn(f"{type(model).__name__} does not say how its images are normalized (attributes `mean` and "
                 "`std`), so they are with ImageNet's statistics; pass normalize=(mean, std), or "
                 "normalize=None to feed them in [0, 1]")
        return imagenet_stats
    try: mean,std = (np.asarray(o, dtype=np.float64).reshape(-1) for o in normalize)
    except (TypeError, ValueError): mean = std = np.zeros(0)
    if len(mean) != len(std) or not len(mean) or not (np.isfinite(mean).all() and (std > 0).all()): raise ValueError(
        f"normalize is True, None or (mean, std), numbers for each channel of images in [0, 1]; got {normalize!r:.80}")
    if getattr(model, 'normalizes', False):
        raise ValueError(f"{type(model).__name__} normalizes its images itself; leave normalize={normalize!r:.60} out")
    return mean.tolist(),std.tolist()

def _told_stats(model):
    "What has `mean` and `std`: `model` or its encoder; None where neither has"
    return next((o for o in (model, getattr(model, 'encoder', None))
                 if hasattr(o, 'mean') and hasattr(o, 'std') and not callable(o.mean)), None)

def make_learner(cls, dls, model, loss_func, metrics, splitter, cbs, pretrained, normalize=True, **kwargs):
    "A `cls` on `dls`, which normalize as `input_stats` says; the encoder is frozen where it is `pretrained`"
    encoder,ours = getattr(model, 'encoder', None),_told_stats(model)
    one_normalize(dls, *input_stats(model, normalize))
    if splitter is None:
        splitter = encoder_splitter
        if encoder is None:
            warn(f"{type(model).__name__} has no attribute `encoder`, so all its parameters are one group and "
                 "`fine_tune` trains them all from the start; pass a `splitter` to freeze a part at first")
    learn = cls(dls, model, loss_func=loss_func, metrics=metrics, splitter=splitter, cbs=cbs, **kwargs)
    if learn.in_pixels: learn.check_view()
    if pretrained and ours is not None: learn.freeze()     # a net of one's own comes as it is
    return learn

# --- learner

FILE = either(PATH, Kind("an open file", lambda o: hasattr(o, 'write') or hasattr(o, 'read')))
NO_DATA = "an exported learner leaves its data behind"

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

class _Scoring(Callback):
    """Raise `ValueError` where the model gives nan, as one that diverged: scores would be those of its first class. By
    this name fastai's loggers and trackers know that nothing is trained: they neither write nor load anything"""
    order,name = 65,'gather_preds'   # after mixed precision made the predictions float32
    def __call__(self, event_name):
        if event_name == 'after_pred': self.after_pred()   # fastai's own would bury the message of an error
    def after_pred(self): refuse_nan(self.learn.pred)

class _Stream(_Scoring):
    "Give each batch of probabilities to `f` and keep none; `mirror` averages with those of the mirrored images"
    every_process,name = True,'streaming'   # predicts all images, so that one process may ask alone
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

DECISIONS = 'thresh','temperature'   # what a loss may hold beside the weights of the model
DECISIONS_KEY = 'vision_tasks'       # where a state dict's metadata have them

@checked_methods
class TaskLearner(Learner):
    "A fastai `Learner` that predicts `Annotation`s in pixels of the file, and whose thresholds go where it goes"
    annotate_options = ()    # those of 'tile' and 'postprocess' that make sense

    @checked(**FASTAI, model=MODULE, loss_func=FUNCTION)
    def __init__(self, dls, model, loss_func=None, opt_func=Adam, lr=defaults.lr, splitter=trainable_params, cbs=None,
                 metrics=None, path=None, model_dir='models', wd=None, wd_bn_bias=False, train_bn=True,
                 moms=(.95, .85, .95), default_cbs=True):
        super().__init__(dls, model, loss_func, opt_func, lr, splitter, cbs, metrics, path, model_dir, wd, wd_bn_bias,
                         train_bn, moms, default_cbs)

    # --- what a task fills in

    def eval_metrics(self) -> list:
        "Metrics that `evaluate` adds to the learner's own"
        return []

    def probabilities(self, pred) -> Tensor:
        "Raw output of the model as probabilities"
        return self.loss_func.activation(pred.as_subclass(Tensor).float())

    def prepared(self, annotations) -> list[Annotation]:
        "`annotations` as the task's `*_dls` would take them; raises where it would"
        return annotations

    def mirror_back(self, probs) -> Tensor:
        "Probabilities of mirrored pictures as those of the pictures"
        raise ValueError(f"{type(self).__name__} cannot average over mirrored pictures; leave tta out")

    def to_annotations(self, probs, pictures, thresh) -> list[Annotation]:
        "A batch of probabilities as annotations of `pictures`, a list of (path, (w, h))"
        raise NotImplementedError

    lr_mult = 100.           # `fine_tune`'s ratio of the head's rate to the encoder's; fastai's
    not_mixed = None         # the targets that MixUp and CutMix cannot mix, for an error; None: they mix them

    # --- what all have

    @checked(n_epoch=COUNT, lr=RATE, wd=number(0), reset_opt=FLAG, start_epoch=whole(0), cbs=CBS)
    def fit(self, n_epoch:int, lr=None, wd:float=None, cbs=None, reset_opt:bool=False, start_epoch:int=0):
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
    def fit_one_cycle(self, n_epoch:int, lr_max=None, div=25., div_final=1e5, pct_start=.25, wd=None, moms=None,
                      cbs=None, reset_opt=False, start_epoch=0):
        "fastai's `fit_one_cycle`"
        self.check_rates('lr_max', lr_max)
        Learner.fit_one_cycle(self, n_epoch, lr_max, div, div_final, pct_start, wd, moms, cbs, reset_opt, start_epoch)

    @checked(start_lr=ONE_RATE, end_lr=ONE_RATE, num_it=COUNT, stop_div=FLAG, show_plot=FLAG)
    def lr_find(self, start_lr=1e-7, end_lr=10, num_it:int=100, stop_div:bool=True, show_plot:bool=True,
                suggest_funcs=SuggestionMethod.Valley):
        """fastai's `lr_find`. Raises `ValueError` before it starts where `check_training` does, and where the loss
        diverges before there is a curve"""
        self.check_training()
        try: return Learner.lr_find(self, start_lr, end_lr, num_it, stop_div, show_plot, suggest_funcs)
        except IndexError as e:
            # of the suggestions, whose curve has no points; another one, as of the data, is no matter of rates
            if traceback.extract_tb(e.__traceback__)[-1].filename != schedule.__file__: raise
            raise ValueError(f"the loss diverged within {num_it} steps from start_lr={start_lr:g}, so that there is no "
                             "curve; begin at a lower rate, or pass stop_div=False") from e

    def check_rates(self, name, lr):
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

    def one_batch(self, i, b):
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

    def distrib_ctx(self, sync_bn:bool=True, in_notebook:bool=False, **kwargs):
        """A while in which the learner trains, validates and predicts in the processes that `torchrun` or `accelerate
        launch` started: `with learn.distrib_ctx(): learn.fine_tune(5)`. `sync_bn`: on GPUs, BatchNorm's statistics are
        over the batches of all; `in_notebook` is fastai's and changes nothing; `kwargs` are accelerate's"""
        return in_processes(self, sync_bn, **kwargs)

    def to_detach(self, b, cpu=True, gather=True):
        "fastai's `to_detach` without its gathering: `Distributed` gathers when a set is through, each picture once"
        return to_detach(b, cpu, gather=False)

    def get_preds(self, ds_idx:int=1, dl=None, with_input:bool=False, with_decoded:bool=False, with_loss:bool=False,
                  act=None, inner:bool=False, reorder:bool=True, cbs=None, **kwargs):
        """fastai's `get_preds`, in several processes too: each has the predictions of all, in the order of the set.
        `learn.recorder` keeps the last training"""
        if dl is None: self.set_with_images(ds_idx)
        # each process shuffles in its own way, and would bring back its own order
        if reorder and getattr(dl, 'shuffle', False) and hasattr(self, 'distributed'): dl = dl.new(shuffle=False)
        with nullcontext() if inner else recorder_kept(self):
            return Learner.get_preds(self, ds_idx, dl, with_input, with_decoded, with_loss, act, inner, reorder, cbs,
                                     **kwargs)

    def export(self, fname='export.pkl', pickle_module=cloudpickle, pickle_protocol:int=2):
        """fastai's `export`, whose file is written whole or not at all; the processes that trained it do not go along.
        The learner itself keeps its data and its optimizer, also where `OSError` says that the file cannot be
        written"""
        if rank_distrib(): return
        file,dls,opt = self.path/fname,self.dls,self.opt
        try:
            with _saving(file) as part, self.removed_cbs(self._grab_cbs(Distributed)):
                Learner.export(self, part.resolve(), pickle_module, pickle_protocol)
        finally: self.dls,self.opt = dls,opt

    def validate(self, ds_idx:int=1, dl=None, cbs=None):
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
    def scored_by(self, metrics):
        """A while in which `metrics` stand in place of the learner's own, loggers and trackers are idle, and a model
        that diverged is refused; after it the recorder is as it was"""
        old,trackers = self.metrics,[cb for cb in self.cbs if isinstance(cb, TrackerCallback)]
        # a tracker insists on its metric even while it is idle
        with recorder_kept(self), self.removed_cbs(trackers), self.added_cbs([_Scoring()]):
            self.metrics = metrics
            try: yield
            finally: self.metrics = old

    def set_with_images(self, ds_idx:int=1):
        "The `ds_idx`-th DataLoader; `ValueError` where there is none, or it has no images, as in an exported learner"
        check_ds_idx(ds_idx, self.dls)
        if not len(self.dls[ds_idx].dataset):
            raise ValueError(f"there are no images in this set: {NO_DATA}; pass dl=annotations, a list of `Annotation`")
        return self.dls[ds_idx]

    def has_truth(self, dl) -> bool:
        "Whether `dl` gives targets beside the images"
        return not hasattr(dl.dataset, 'tls') or len(dl.dataset.tls) > self.dls.n_inp

    def annotated_dl(self, annotations):
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

    def valid_view(self, size) -> View:
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

    def items_of_batch(self, start, n) -> list[Annotation]:
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

    def pictures_of(self, items) -> list:
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

    def stream(self, items, f, bs=None, tta=False):
        "Give `f` the probabilities of `items`, batch by batch in their order, and keep none"
        if not items: return
        dl = self.dls.test_dl(items, bs=min(bs or self.dls.bs, len(items)), rm_type_tfms=0)
        self.get_preds(dl=dl, with_preds=False, with_targs=False, reorder=False, cbs=_Stream(f, tta))

    def predict(self, item, rm_type_tfms=0, with_input:bool=False):
        "fastai's `predict`, of one item as `annotate` takes it: the prediction, the decisions, the probabilities"
        self.pictures_of([item])
        res = Learner.predict(self, item, rm_type_tfms, with_input)
        refuse_nan(res[-1])
        return res

    def tta(self, ds_idx=1, dl=None, n=4, item_tfms=None, batch_tfms=None, beta=.25, use_max=False):
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

    def show_annotations(self, items, ncols:int=None, **kwargs):
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
    def plot_top_losses(self, k:int=9, ds_idx:int=1, dl=None, largest:bool=True, **kwargs):
        "Draw the `k` pictures with the largest (or smallest) loss, that first"
        dl = self.whole_dl(ds_idx, dl)
        *_,losses = self.get_preds(dl=dl, with_loss=True, with_preds=False, with_targs=False)
        losses,idxs = losses.topk(min(k, len(losses)), largest=largest)
        b = dl.new(get_idxs=FixedOrder(idxs.tolist()), bs=len(idxs)).one_batch()
        probs,dec = self._answers(b)
        dl.show_results(b, dec, max_n=len(idxs), probs=probs, losses=losses.tolist(), **kwargs)

    @checked(file=FILE)
    def save(self, file, **kwargs):
        """fastai's `save`; thresholds and temperature are saved too, as metadata of the state dict, so that fastai and
        torch read the file as any other. It is written whole or not at all"""
        note = lambda module, state, prefix, metadata: metadata.update({DECISIONS_KEY: self.decisions()})
        hook = get_model(self.model).register_state_dict_post_hook(note)
        try:
            if not isinstance(file, (str, Path)) or rank_distrib(): return Learner.save(self, file, **kwargs)
            file = join_path_file(file, self.path/self.model_dir, ext='.pth')
            with _saving(file) as part: save_model(part, self.model, self.opt, **kwargs)
        finally: hook.remove()
        return file

    @checked(file=FILE)
    def load(self, file, device=None, **kwargs):
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
            with _reading(whole, 'learn.save', lambda e: not begun): Learner.load(self, file, device=device, **kwargs)
        finally: hook.remove()
        for k,v in found.items():
            if hasattr(self.loss_func, k): setattr(self.loss_func, k, torch.tensor(v) if isinstance(v, list) else v)
        return self

    def decisions(self) -> dict:
        "Thresholds and temperature of the loss, those that it has: numbers, or lists of one per class"
        res = {k: getattr(self.loss_func, k) for k in DECISIONS if hasattr(self.loss_func, k)}
        res = {k: v.tolist() if isinstance(v, (Tensor, np.ndarray, np.generic)) else v for k,v in res.items()}
        return {k: v for k,v in res.items() if isinstance(v, (int, float, list))}

@contextmanager
def _saving(file):
    "`replacing`, where torch's word for a full disk is an `OSError` that names `file`"
    try:
        with replacing(file) as part: yield part
    except RuntimeError as e: raise OSError(f"{file} cannot be written: {e}") from e

@contextmanager
def _reading(file, by, damaged):
    "A block that loads `file`; `ValueError` names it where torch's error `e` is one for which `damaged(e)`"
    todo = f"it is cut, damaged or not written by {by}; use a copy, or train and save again"
    if isinstance(file, (str, os.PathLike)) and os.path.isfile(file) and not _is_torch_file(file):
        raise ValueError(f"{file} cannot be loaded: {todo}")
    try: yield
    except (OSError, MemoryError, torch.OutOfMemoryError): raise   # these have words of their own
    except Exception as e:
        if not damaged(e): raise
        first = str(e).strip().partition('\n')[0] or type(e).__name__
        if first.startswith('Weights only'): first = 'it holds objects other than tensors'   # torch advises to run them
        raise ValueError(f"{file} cannot be loaded ({first:.160}): {todo}") from e

def _is_torch_file(file):
    "Whether `file` is a zip with its directory, which comes last, or a pickle as torch wrote it before 1.6"
    with open(file, 'rb') as f:
        begin = f.read(2)
        return zipfile.is_zipfile(f) if begin == b'PK' else begin[:1] == b'\x80'

@checked(fname=FILE, cpu=FLAG)
def load_learner(
    fname,                # file of `learn.export`
    cpu:bool=True,        # whether the learner goes to the CPU, or to the default device
    pickle_module=pickle, # what reads the pickle
) -> Learner:
    """fastai's `load_learner`: the learner without its data. A pickle can run any code: load only what you trust.
    Raises `ValueError` that names a file which is cut, damaged or of another kind"""
    # a class or module that does not exist here is not the file's fault
    damaged = lambda e: not isinstance(e, (AttributeError, ImportError)) and 'deprecated in `fastai' not in str(e)
    try:
        with _reading(fname, 'learn.export', damaged): return load_fastai_learner(fname, cpu, pickle_module)
    except AttributeError as e:
        if e.name != 'dls': raise
        raise ValueError(f"{fname} holds a {type(e.obj).__name__}, not a learner; learn.load(file) reads what "
                         "learn.save wrote, load_learner what learn.export wrote") from e

IMAGES = str,os.PathLike,Annotation,bytes,bytearray,Image.Image,np.ndarray,Tensor   # what `annotate` takes

def picture_of(o):
    "(path, (w, h)) of what `annotate` takes; the path is None for an image that came as pixels"
    if isinstance(o, Annotation): return o.path,o.size
    if isinstance(o, (str, os.PathLike)): return Path(o),image_size(o)
    if isinstance(o, (Tensor, np.ndarray)): return None,array_size(o)
    if isinstance(o, Image.Image): return None,shown_size(o)
    return None,FileImage.create(o).size
