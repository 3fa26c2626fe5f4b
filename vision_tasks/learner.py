"What all learners share: evaluate, annotate, thresholds that are kept, one `Normalize`, the encoder apart"
from __future__ import annotations
import os, warnings
from contextlib import contextmanager
from pathlib import Path
import numpy as np
from torch import Tensor, nn
from fastcore.foundation import L
# `all`, for it patches fit_one_cycle, lr_find, to_fp16, summary, no_bar into Learner
from fastai.callback.all import Callback
from fastai.data.transforms import Normalize
from fastai.learner import Learner, replacing_yield
from fastai.torch_core import apply_init, no_random, num_distrib, params, to_detach, to_device
from fastai.vision.core import TensorImage
from fastai.vision.learner import create_head
from PIL import Image
from .data.annotation import Annotation, AnnotationError, vocab_of, wh
from .data.blocks import FileImage, check_labels, clip_objects
from .data.check import check_images
from .data.image import image_size, shown_size
from .data.transforms import View, valid_step
from .distributed import Distributed, in_processes
from .models.encoders import create_encoder
from .models.registry import get_arch, list_archs
from .show import FixedOrder

__all__ = ['TaskLearner', 'EncoderHead', 'encoder_splitter', 'one_normalize']   # the rest is for the tasks

# --- data

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

def check_which(check):
    "Raise `ValueError` where `check` is not what a task with masks takes"
    if not any(check is o for o in (True, False)) and check != 'masks': raise ValueError(
        f"check is 'masks', True (masks and images) or False, not {check!r}")

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
    warnings.warn(f"{n} of {total} boxes, in {images} images, are less than one pixel wide or high on the network's "
                  f"input of {wh(network_view(dls, a.size).out)}, as one of {w:.2f} x {h:.2f} pixels in {a.path}: they "
                  "are not learned, and `evaluate` counts them as missed; choose a larger size, cut the images into "
                  "tiles, or drop such boxes", stacklevel=3)
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
    "`annotations` as a list; raise where it is empty, or of something else"
    annotations = list(annotations)
    if not annotations:
        raise AnnotationError("the data set is empty: no annotation came; look at what the reader was given")
    for a in annotations:
        if not isinstance(a, Annotation):
            raise TypeError("annotations is a list of Annotation, as the readers give it; "
                            f"it holds a {type(a).__name__}")
    return annotations

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
        warnings.warn(f"boxes of {len(changed)} of {len(res)} pictures reach outside the picture, or have no area: "
                      f"they were clipped, and {gone} objects without an area in the picture were dropped. The first "
                      f"is in {changed[0].path}; `check_annotations` lists them", stacklevel=3)
    return res

# --- model

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
    if isinstance(arch, str) and arch in list_archs(task):
        return get_arch(arch, task)(n_out, pretrained=pretrained, **kw)
    if isinstance(arch, str) or getattr(arch, '__module__', '').startswith('torchvision.'):
        return EncoderHead(create_encoder(arch, pretrained=pretrained, pyramid=False), head, n_out, kw)
    if callable(arch): return arch(n_out, **kw)
    raise TypeError(f"arch is a name, a builder or an nn.Module, not {type(arch).__name__}; "
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

def one_normalize(dls, mean, std):
    """Let every DataLoader of `dls` normalise once, with `mean` and `std`; what normalised before is replaced. None:
    the model normalises itself, so that they do not"""
    for dl in dls.loaders:
        pipe = dl.after_batch
        pipe.fs = L(o for o in pipe.fs if not isinstance(o, Normalize))
        if mean is None: continue
        norm = NormalizeInPlace.from_stats(mean, std, cuda=False)
        for o in norm.parameters: setattr(norm, o, getattr(norm, o).to(dl.device or 'cpu'))
        pipe.add(norm)

def make_learner(cls, dls, model, loss_func, metrics, splitter, cbs, pretrained, **kwargs) -> TaskLearner:
    """A `cls` on `dls`, which are normalised as the model says, else its encoder; the encoder is frozen where it is
    `pretrained`"""
    encoder = getattr(model, 'encoder', None)
    ours = next((o for o in (model, encoder) if hasattr(o, 'mean')), None)
    if ours is not None: one_normalize(dls, ours.mean, ours.std)
    if splitter is None:
        splitter = encoder_splitter
        if encoder is None:
            warnings.warn(f"{type(model).__name__} has no attribute `encoder`, so all its parameters are one group and "
                          "`fine_tune` trains them all from the start; pass a `splitter` to freeze a part at first",
                          stacklevel=3)
    learn = cls(dls, model, loss_func=loss_func, metrics=metrics, splitter=splitter, cbs=cbs, **kwargs)
    if learn.in_pixels: learn.check_view()
    if pretrained and ours is not None: learn.freeze()     # a net of one's own comes as it is
    return learn

# --- learner

class _Stream(Callback):
    "Give each batch of probabilities to `f` and keep none; `mirror` averages with those of the mirrored pictures"
    order = 65   # after mixed precision made the predictions float32
    every_process = True   # answers for all pictures, so that one may ask alone
    def __init__(self, f, mirror): super().__init__(); self.f,self.mirror = f,mirror
    def __call__(self, event_name):
        if event_name == 'after_pred': self.after_pred()   # fastai's own would bury the message of an error
    def after_pred(self):
        p = self.learn.probabilities(self.learn.pred)
        if p.isnan().any():
            raise ValueError("the model gives nan for these pictures: it diverged in training; "
                             "train it anew with a lower learning rate")
        if self.mirror:
            mirrored = self.learn.model(*[o.flip(-1) for o in self.learn.xb])
            p = (p + self.learn.mirror_back(self.learn.probabilities(mirrored)))/2
        self.f(p)

class TaskLearner(Learner):
    "A fastai `Learner` that predicts `Annotation`s in pixels of the file, and whose thresholds go where it goes"
    annotate_options = ()    # those of 'tile' and 'postprocess' that make sense

    # --- what a task fills in

    def eval_metrics(self) -> list:
        "Metrics that `evaluate` adds to the learner's own"
        return []

    def probabilities(self, pred) -> Tensor:
        "Raw output of the model as probabilities"
        return self.loss_func.activation(pred.as_subclass(Tensor).float())

    def mirror_back(self, probs) -> Tensor:
        "Probabilities of mirrored pictures as those of the pictures"
        raise ValueError(f"{type(self).__name__} cannot average over mirrored pictures; leave tta out")

    def to_annotations(self, probs, pictures, thresh) -> list[Annotation]:
        "A batch of probabilities as annotations of `pictures`, a list of (path, (w, h))"
        raise NotImplementedError

    lr_mult = 100.           # `fine_tune`'s ratio of the head's rate to the encoder's; fastai's

    # --- what all have

    def fine_tune(self, epochs:int, base_lr:float=2e-3, freeze_epochs:int=1, lr_mult:float=None, **kwargs):
        "fastai's `fine_tune`; `lr_mult` None = the task's own, for an encoder may have to learn more than new names"
        lr_mult = self.lr_mult if lr_mult is None else lr_mult
        Learner.fine_tune(self, epochs, base_lr, freeze_epochs=freeze_epochs, lr_mult=lr_mult, **kwargs)

    def distrib_ctx(self, sync_bn:bool=True, in_notebook:bool=False, **kwargs):
        """A while in which the learner trains, validates and predicts in the processes that `torchrun` or `accelerate
        launch` started: `with learn.distrib_ctx(): learn.fine_tune(5)`. `sync_bn`: on GPUs, BatchNorm's statistics are
        over the batches of all; `in_notebook` is fastai's and changes nothing; `kwargs` are accelerate's"""
        return in_processes(self, sync_bn, **kwargs)

    def _do_fit(self, *args):
        if num_distrib() > 1 and not hasattr(self, 'distributed'):
            raise RuntimeError(f"this is one of {num_distrib()} processes, each of which would train a model of its "
                               "own; train them as one: with learn.distrib_ctx(): learn.fine_tune(...)")
        return super()._do_fit(*args)

    def to_detach(self, b, cpu=True, gather=True):
        "fastai's `to_detach` without its gathering: `Distributed` gathers when a set is through, each picture once"
        return to_detach(b, cpu, gather=False)

    def get_preds(self, ds_idx:int=1, dl=None, *, reorder:bool=True, **kwargs):
        "fastai's `get_preds`, in several processes too: each has the predictions of all, in the order of the set"
        # each process shuffles in its own way, and would bring back its own order
        if reorder and getattr(dl, 'shuffle', False) and hasattr(self, 'distributed'): dl = dl.new(shuffle=False)
        return super().get_preds(ds_idx, dl, reorder=reorder, **kwargs)

    def export(self, *args, **kwargs):
        "fastai's `export`; the processes that trained it do not go along"
        with self.removed_cbs(self._grab_cbs(Distributed)): Learner.export(self, *args, **kwargs)

    def evaluate(self, ds_idx:int=1, dl=None) -> dict:
        """The loss and all scores of the `ds_idx`-th set, or of `dl`, by name; the learner's own metrics first.
        Batches stream: no logits are kept"""
        dl,have = self.whole_dl(ds_idx, dl),{m.name for m in self.metrics}
        metrics = [*self.metrics, *(m for m in self.eval_metrics() if m.name not in have)]
        with self.scored_by(metrics):
            return dict(zip(['valid_loss', *(m.name for m in metrics)], list(self.validate(dl=dl))))

    @contextmanager
    def scored_by(self, metrics):
        "A while in which `metrics` stand in place of the learner's own"
        return replacing_yield(self, 'metrics', metrics)

    def whole_dl(self, ds_idx:int=1, dl=None):
        "The `ds_idx`-th set, or `dl`, in its order, to its end and without augmentation"
        src = self.dls[ds_idx] if dl is None else dl
        if not len(src.dataset):
            raise ValueError("there are no data here: an exported learner leaves them behind; "
                             "pass dl=learn.dls.test_dl(annotations, with_labels=True)")
        if hasattr(src.dataset, 'tls') and len(src.dataset.tls) <= self.dls.n_inp:
            raise ValueError("these are pictures without truth: pass learn.dls.test_dl(annotations, with_labels=True)")
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
        "Annotations `start` to `start + n` in the order in which the current DataLoader gives them"
        return [self.dl.items[i] for i in self.dl._DataLoader__idxs[start:start+n]]

    def annotate(self,
        items,            # list of Annotation, path, PIL image or array (h, w, 3) uint8; or one of these
        thresh=None,      # in place of the learner's own: a number, or one per class
        bs:int=None,      # pictures at a time; None = as in training
        tile=None,        # (w, h) of tiles, for tasks that answer pixel by pixel
        tta:bool=False,   # average with the mirrored pictures
        postprocess=None, # (probs, image) -> probs at the file's size, for tasks that answer pixel by pixel
    ) -> list[Annotation]:
        """Predictions for `items`: class names and scores, in pixels of the files, in the order of `items`; batch by
        batch, with a progress bar.

        Files of large JPEGs are decoded at a reduced size, as in training; so is a JPEG that `Image.open` gave and
        whose pixels nobody has asked for. Pixels that are decoded already (arrays, tensors, loaded images) differ from
        those at the network's input by about 1 % on average, and scores differ a little: pass paths for the scores of
        `evaluate`"""
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
        "What `annotate` was given, as a list; raises for a folder"
        one = isinstance(items, (str, os.PathLike, Annotation, Image.Image, np.ndarray, Tensor))
        items = [items] if one else list(items)
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
        "fastai's `predict`, of one item as `annotate` takes it: what is there, the decisions, the probabilities"
        return super().predict(item, rm_type_tfms=rm_type_tfms, with_input=with_input)

    def tta(self, *args, **kwargs):
        """fastai's `tta` averages answers over augmented pictures as if nothing in them had moved; where answers say
        where things are it raises"""
        raise ValueError("tta averages over pictures whose points, boxes and pixels have moved; "
                         "use annotate(items, tta=True), which turns the answers for mirrored pictures back")

    def show_results(self, ds_idx:int=1, dl=None, max_n:int=9, shuffle:bool=True, **kwargs):
        "Draw `max_n` pictures of the `ds_idx`-th set, or of `dl`, with truth and prediction"
        dl = (self.dls[ds_idx] if dl is None else dl).new(shuffle=shuffle)
        b = dl.one_batch()
        probs,dec = self._answers(b)
        dl.show_results(b, dec, max_n=max_n, probs=probs, **kwargs)

    def _answers(self, b):
        "Probabilities and decisions of batch `b`; without metrics, for some want the annotations behind a batch"
        with self.scored_by([]): probs,_,dec = self.get_preds(dl=[b], with_decoded=True)
        return probs,dec

    def plot_top_losses(self, k:int=9, ds_idx:int=1, dl=None, largest:bool=True, **kwargs):
        "Draw the `k` pictures with the largest (or smallest) loss, that first"
        dl = self.whole_dl(ds_idx, dl)
        *_,losses = self.get_preds(dl=dl, with_loss=True, with_preds=False, with_targs=False)
        losses,idxs = losses.topk(min(k, len(losses)), largest=largest)
        b = dl.new(get_idxs=FixedOrder(idxs.tolist()), bs=len(idxs)).one_batch()
        probs,dec = self._answers(b)
        dl.show_results(b, dec, max_n=len(idxs), probs=probs, losses=losses.tolist(), **kwargs)

    def load(self, file, device=None, **kwargs):
        "fastai's `load`, which also takes the path that `save` returns"
        file = Path(file) if isinstance(file, (str, os.PathLike)) else file
        if isinstance(file, Path) and file.suffix == '.pth' and file.is_file(): file = file.resolve().with_suffix('')
        return Learner.load(self, file, device=device, **kwargs)

def picture_of(o):
    "(path, (w, h)) of what `annotate` takes; the path is None for an image that came as pixels"
    if isinstance(o, Annotation): return o.path,o.size
    if isinstance(o, (str, os.PathLike)): return Path(o),image_size(o)
    if isinstance(o, Tensor): return None,(o.shape[-1], o.shape[-2])
    if isinstance(o, np.ndarray): return None,(o.shape[1], o.shape[0])
    if isinstance(o, Image.Image): return None,shown_size(o)
    return None,FileImage.create(o).size
