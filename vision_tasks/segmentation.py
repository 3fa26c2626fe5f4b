"Semantic segmentation: a class for every pixel; void pixels are excluded from losses and metrics"
from __future__ import annotations
import inspect
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from fastcore.foundation import L
from fastai.callback.all import Callback, GradientAccumulation
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.learner import Metric
from fastai.torch_core import to_float
from .arguments import COUNT, FLAG, FUNCTION, NAMES, SIZE, Kind, checked, checked_methods, either, number
from .data.annotation import Annotation
from .data.blocks import ClassMaskBlock, FileImageBlock
from .data.geometry import batch_geometry
from .data.splits import AnnotationSplitter
from .data.targets import annotation_of, class_mask
from .data.transforms import JointTransform
from .data.views import CropView, View
from .losses.base import loss_by_name
from .losses.segmentation import SEGMENTATION_LOSSES
from .metrics.segmentation import (MeanIoU, PixelAccuracy, class_accuracy_from_confusion, confusion_counts,
                                   confusion_scores, dice_from_confusion, iou_from_confusion)
from .ops.crf import dense_crf
from .ops.windows import resample_map
from .show.class_masks import SegmentationDL
from .show.plots import plot_confusion
from .training.build import build_by_name, name_of, naming_arguments
from .training.learner import TaskLearner
from .training.recipes import Recipe
from .training.whole_images import WholeImages
from .training.task import Task, task_dls, task_learner
from .training.kinds import BLOCK, CHECK, DLS, LEARNER

__all__ = ['segmentation_block', 'segmentation_dls', 'segmentation_learner', 'AuxLoss', 'SegmentationLearner']

AT_ONCE = 2**26   # numbers of the probabilities of one image in memory, when they are resized to the file

@checked(**BLOCK)
def segmentation_block(
    vocab,            # list of class names, in the order of their indices; void is none of them
    size=224,
    splitter=None,
    item_tfms=None,   # in place of a `JointTransform` that crops and flips; squish otherwise
    batch_tfms=None,
) -> DataBlock:
    "Image in, (h, w) class indices out, 255 = void. Its source is a list of `Annotation`"
    if item_tfms is None: item_tfms = JointTransform(size, train=CropView((.5, 1.)))
    return DataBlock((FileImageBlock, ClassMaskBlock(vocab)), get_x=annotation_of, get_y=annotation_of,
                     dl_type=SegmentationDL, splitter=splitter or AnnotationSplitter(), item_tfms=item_tfms,
                     batch_tfms=batch_geometry(batch_tfms))

@checked(**DLS, check=CHECK, vocab=either(NAMES, Kind("a dict of names by value", lambda o: isinstance(o, dict))))
def segmentation_dls(
    annotations,          # list[Annotation] with `mask`, as `read_masks` returns them
    vocab,                # list of class names, in the order of their indices (`codes` of `read_masks`); of a dict
                          # {value: name}, as `read_masks` takes it, the names in their order
    bs:int=16,
    path='.', valid_pct:float=.2, seed:int=42, num_workers:int=None, device=None, cache=None,
    check='masks',        # 'masks': read all masks once, in threads, so that a value beyond the vocab raises now; True:
                          # decode all images too; False: neither, and what is broken raises when it is met
    **block_kwargs,       # of `segmentation_block`: `size`, `splitter`, `item_tfms`, `batch_tfms`
) -> DataLoaders:
    """DataLoaders of images and class masks. Raises `AnnotationError` for missing files, images without a mask, masks
    of another size, values beyond the vocab"""
    vocab = list(vocab.values() if isinstance(vocab, dict) else vocab)
    return task_dls(SEGMENTATION, annotations, vocab, bs, path, valid_pct, seed, num_workers, device, check,
                    block_kwargs, cache, check_masks=bool(check))

def _prepare(annotations, vocab, check_masks=False):
    twice = sorted({o for o in vocab if vocab.count(o) > 1})
    if twice or not vocab: raise ValueError(f"vocab: expected the names of the classes, each once, got {vocab}")
    if len(vocab) == 1: raise ValueError(f"vocab has {vocab[0]!r} alone, so that there is nothing to distinguish it "
                                         "from; name what the other pixels are too, such as 'background'")
    if check_masks:
        with ThreadPoolExecutor() as ex: list(ex.map(lambda a: class_mask(a, len(vocab)) is None, annotations))
    return annotations,vocab

@checked(**LEARNER, aux_weight=number(0))
def segmentation_learner(
    dls:DataLoaders,       # of `segmentation_dls`
    arch=None,             # name (`list_archs('segmentation')`), builder `n_out -> nn.Module`, or `nn.Module` that
                           # returns (b, n_out, h, w) logits; None (default): 'light_unet'
    encoder=None,          # name (torchvision or timm), for architectures on any encoder; None (default): its own
    pretrained=True,
    n_out:int=None,        # classes without void; None (default): `len(dls.vocab)`
    arch_kwargs=None,      # of the builder: `width`, `padding`, ...
    loss_func=None,        # 'ce' (default), 'focal', 'dice', 'ce_dice', or a loss on (b, c, h, w) and (b, h, w)
    metrics=None,          # None (default): mean IoU and pixel accuracy, in pixels of the network's input
    splitter=None, normalize=True, cbs=None,
    aux_weight:float=.5,   # weight of the auxiliary loss, where the network has an auxiliary head when training
    **learner_kwargs,
) -> SegmentationLearner:
    "A `SegmentationLearner`; what is pretrained is frozen at first"
    cbs = [AuxLoss(aux_weight), *L(cbs)]
    learn = task_learner(SEGMENTATION, dls, arch, encoder, pretrained, n_out, arch_kwargs, loss_func, metrics, splitter,
                         normalize, cbs, learner_kwargs)
    learn.try_one_batch()
    return learn

def _build(dls, arch, encoder, n_out, pretrained, arch_kwargs):
    if isinstance(arch, nn.Module): return arch,False
    kw,arch = dict(arch_kwargs or {}),'light_unet' if arch is None else arch
    if encoder is not None: kw['encoder'] = encoder
    name = name_of('segmentation', arch)
    with naming_arguments(arch):
        return (arch(n_out, **kw),False) if name is None else build_by_name('segmentation', name, n_out, pretrained, kw)

def _loss(o, n_out): return loss_by_name(o or 'ce', SEGMENTATION_LOSSES, '(b, c, h, w)')

def _metrics(): return [MeanIoU(), PixelAccuracy()]

class AuxLoss(Callback):
    "Nets with an auxiliary head give (logits, auxiliary logits) when training: add `weight` times the loss of these"
    order = GradientAccumulation.order-1   # before it scales the loss
    @checked(weight=number(0))
    def __init__(self, weight=.5, # of the auxiliary loss
    ):
        self.weight,self.aux = weight,None
    def after_pred(self):
        self.aux = None
        if isinstance(self.pred, tuple): self.learn.pred,self.aux = self.pred[0],to_float(self.pred[1])
    def after_loss(self):
        if self.aux is None: return
        self.learn.loss_grad = self.loss_grad + self.weight*self.loss_func(self.aux, *self.yb)
        self.learn.loss,self.aux = self.loss_grad.detach().clone(),None

GRID = Kind("a dict of lists of values, by the parameter of `dense_crf`", lambda o: isinstance(o, dict) and
            all(k in inspect.signature(dense_crf).parameters and len(list(v)) for k,v in o.items()))

class InFileConfusion(Metric):
    "(c, c) pixel counts in pixels of the files, row = target, column = prediction"
    name = 'confusion'
    def reset(self): self.counts,self.n = None,0
    def accumulate(self, learn):
        items,probs = learn.items_of_batch(self.n, len(learn.pred)),learn.probabilities(learn.pred)
        self.n += len(items)
        for a,p in zip(items, probs):
            preds = learn.labels_in_file(p, a.size)
            cm = confusion_counts(preds, torch.from_numpy(class_mask(a, len(learn.dls.vocab))), len(learn.dls.vocab))
            self.counts = cm if self.counts is None else self.counts + cm
    @property
    def value(self): return 0.

@checked_methods
class SegmentationLearner(WholeImages, TaskLearner):
    "A `TaskLearner` that predicts a class mask of the size of each file"
    in_pixels = True
    not_mixed = 'class masks'

    def try_one_batch(self):
        "Let an error of sizes come now, not in the middle of an epoch"
        x = self.dls.valid.one_batch()[0] if len(self.dls.valid.dataset) else None
        if x is None: return
        mode,x = self.model.training,x[:1].as_subclass(Tensor)
        try:
            with torch.no_grad():
                out = self.model.to(x.device).eval()(x)
                if isinstance(out, Tensor) and out.shape[-2:] != x.shape[-2:]: self._check_crop(x, out)
        finally: self.model.train(mode)
        if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[1] != len(self.dls.vocab):
            came = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the model gives {came} for an image of {tuple(x.shape[-2:])}; expected logits (1, "
                             f"{len(self.dls.vocab)}, h, w): one for each class of dls.vocab and pixel")

    def _check_crop(self, x, out):
        "Raise unless `out` is smaller than `x` by what a network without padding loses: the same at each side and size"
        lost  = [n-m for n,m in zip(x.shape[-2:], out.shape[-2:])]
        larger = F.pad(x, (0, 16, 0, 16))
        if len({*lost}) == 1 and lost[0] > 0 and lost[0]%2 == 0:
            if larger.shape[-1] - self.model(larger).shape[-1] == lost[0]: return
        raise ValueError(f"the model gives logits of {tuple(out.shape[-2:])} for an image of {tuple(x.shape[-2:])} "
                         "(height, width); expected the same, or fewer by a constant number at each side: resize the "
                         "logits to the image in the model's forward, by F.interpolate(..., x.shape[-2:])")

    def mirror_back(self, probs): return probs.flip(-1)

    def probabilities(self, pred): return pred.as_subclass(Tensor).float().softmax(1)

    # --- from the network's pixels to the file's

    def probs_in_file(self,
        p,    # (c, h, w) probabilities at the network's input
        size, # (w, h) of the image file
    ) -> Tensor:
        """(c, h, w) probabilities of the network's input as (c, H, W) of a file of `size` (w, h); 0 for all classes
        where the network did not look"""
        res = p.new_zeros(len(p), size[1], size[0])
        (x1,y1,x2,y2),sample = self._place(p, size)
        res[:, y1:y2, x1:x2] = sample(p)
        return res

    def labels_in_file(self,
        p,    # (c, h, w) probabilities at the network's input
        size, # (w, h) of the image file
    ) -> Tensor:
        """(H, W) class indices of a file of `size` (w, h), on the CPU: the best of (c, h, w) probabilities, 255 where
        the network did not look"""
        (x1,y1,x2,y2),sample = self._place(p, size)
        best = None
        # class by class where all at once would fill the memory
        step = len(p) if len(p)*(y2-y1)*(x2-x1) <= AT_ONCE else 1
        for i in range(0, len(p), step):
            top,idx = sample(p[i:i+step]).max(0)
            if best is None: best,which = top,idx.to(torch.int32)
            else:
                on = top > best
                best,which = torch.where(on, top, best),torch.where(on, (idx+i).to(torch.int32), which)
        res = torch.full(size[::-1], 255, dtype=torch.uint8 if len(p) <= 255 else torch.int32)
        res[y1:y2, x1:x2] = which.to('cpu', res.dtype)
        return res

    def _place(self, p, size):
        """The rectangle of the file that the network saw, in whole pixels, and a function that brings maps like `p` to
        that rectangle"""
        view,(h,w) = self.valid_view(size),p.shape[-2:]
        # a network without padding predicts the center of its input
        cut = np.array([(view.out[0]-w)/2, (view.out[1]-h)/2])
        view = view.then(View((*cut, *(cut + [w, h])), (0, 0, w, h), (w, h)))
        x1,y1,x2,y2 = np.array(view.src).round().clip(0, np.tile(size, 2)).astype(int).tolist()
        return (x1, y1, x2, y2),partial(resample_map, rect=(x1, y1, x2, y2), view=view)

    def to_annotations(self, probs, images, thresh=None):
        return [Annotation(path, size, mask=self.labels_in_file(p, size).numpy())
                for p,(path,size) in zip(probs, images)]

    @checked(tta=FLAG, postprocess=FUNCTION, tile=SIZE)
    def annotate(self,
        items,
        bs:int=None,
        tile=None,        # (w, h) or one number of pixels of the tiles, for images larger than those that the network
                          # was trained on: tiles overlap and are blended; None (default): the whole image at once
        scale=None,       # resize images before they are cut into tiles: network pixels per image pixel, one number or
                          # (x, y); None (default): not at all, with a warning where the network was validated at
                          # another scale (by more than a half), as after images were squished to its input
        tta:bool=False,
        postprocess=None, # (probs (c, H, W), image (3, H, W) uint8) -> probs (c, H, W), before each pixel takes its
                          # class, such as `dense_crf`
    ) -> list[Annotation]:
        "Class masks of the sizes of the images"
        if scale is not None and tile is None: raise ValueError(
            f"scale={scale} is for tiles: pass `tile` too; without tiles images are resized as in validation")
        if tile is None and postprocess is None: return super().annotate(items, None, bs, tta)
        if tile is not None and scale is None: self._warn_scale()
        return self._annotate_whole(items, bs, tile, tta, postprocess, scale)

    # --- scores

    def evaluate(self, ds_idx:int=1, dl=None) -> dict:
        """The loss; then, in pixels of the files and over the data set, mean IoU, pixel accuracy, mean class accuracy,
        frequency-weighted IoU and Dice; then further metrics of the learner's own. Counts stream, no logits are kept"""
        own = [m for m in self.own_metrics() if m.name not in confusion_scores(torch.ones(1, 1))]
        counts,loss,*rest = self._count(ds_idx, dl, own)
        return {'valid_loss': loss, **confusion_scores(counts), **{m.name: v for m,v in zip(own, rest)}}

    def _count(self, ds_idx, dl, metrics=()):
        "The (c, c) counts in pixels of the files, the loss, and the values of further `metrics`"
        cm = InFileConfusion()
        with self.scored_by([cm, *metrics]):
            loss,_,*rest = self.validate(dl=self.whole_dl(ds_idx, dl))
        return cm.counts,loss,*rest

    def confusion(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        "Pixels of the files by true class (rows) and predicted class (columns), without void"
        counts,vocab = self._count(ds_idx, dl)[0],list(self.dls.vocab)
        return pd.DataFrame(counts.numpy(), index=vocab, columns=vocab)

    def evaluate_per_class(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """For each class: pixels of it in the files, IoU, share of them that were found (accuracy, recall), share of
        the predictions that are correct (precision), Dice; nan where it has no meaning"""
        cm = self._count(ds_idx, dl)[0]
        return pd.DataFrame({'label': list(self.dls.vocab), 'n': cm.sum(1).numpy(),
                             'iou': iou_from_confusion(cm).numpy(),
                             'accuracy': class_accuracy_from_confusion(cm).numpy(),
                             'precision': class_accuracy_from_confusion(cm.T).numpy(),   # rows and columns exchanged
                             'dice': dice_from_confusion(cm).numpy()})

    @checked(normalize=FLAG)
    def plot_confusion(self, ds_idx:int=1, dl=None, normalize:bool=True, ax=None):
        "Draw the confusion matrix, in pixels of the files"
        return plot_confusion(self.confusion(ds_idx, dl), normalize, ax)

    @checked(grid=GRID, n=COUNT)
    def tune_crf(self,
        grid:dict,        # parameter of `dense_crf` -> values to try: {'w1': [2., 4., 8.], 'sb': [3., 5., 10.]}
        ds_idx:int=1,     # of the set
        n:int=None,       # of its images, evenly spaced; None (default): all
    ) -> pd.DataFrame:    # one row each, best first; the one with n_iter 0 is the network alone
        """Mean IoU in pixels of the files after `dense_crf` with every combination of `grid`; then
        `annotate(items, postprocess=partial(dense_crf, ...))`"""
        items,c = list(self.whole_dl(ds_idx).items),len(self.dls.vocab)
        items = [items[i] for i in np.linspace(0, len(items)-1, min(n or len(items), len(items))).astype(int)]
        tried = [dict(n_iter=0), *(dict(n_iter=10) | dict(zip(grid, o)) for o in product(*grid.values()))]
        counts,todo = [0]*len(tried),iter(items)
        def gather(probs):
            for p,a in zip(probs, todo):
                p,im,true = self.probs_in_file(p, a.size),self._pixels_of(a),torch.from_numpy(class_mask(a, c))
                for i,kw in enumerate(tried):
                    q = dense_crf(p, im, **kw)
                    preds = q.argmax(0).where(q.any(0), 255).cpu()   # void where the network saw nothing
                    counts[i] = counts[i] + confusion_counts(preds, true, c)
        self.stream(items, gather)
        df = pd.DataFrame([{**kw, 'miou': confusion_scores(o)['miou']} for kw,o in zip(tried, counts)])
        return df.sort_values('miou', ascending=False, ignore_index=True)

    def tune_threshold(self, *args, **kwargs, # ignored: always an error
    ):
        raise ValueError("every pixel takes the class with the highest score, so that there is no threshold to tune")

# ImageNet's encoders forget where things are, and must learn it: at fastai's ratio of 100 they hardly do
SEGMENTATION = Task('segmentation', SegmentationLearner, segmentation_block, _prepare, _build, _loss, _metrics,
                    n_out=len, recipe=Recipe(lr_mult=2.))
