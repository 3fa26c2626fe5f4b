"Classification and localization: the class and the box of the one object of an image; one encoder, two heads"
from __future__ import annotations
from functools import partial
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.layers import sigmoid_range
from .arguments import FLAG, check_thresh, checked, checked_methods, choice
from .data.annotation import Annotation, select_objects
from .data.errors import AnnotationError
from .data.blocks import FileImageBlock, OneObjectBlock
from .data.targets import NO_OBJECT, annotation_of, check_labels, object_bbox, object_label
from .data.check import check_relative
from .data.splits import AnnotationSplitter
from .data.geometry import batch_geometry
from .data.transforms import JointTransform
from .data.views import JitterView
from .losses.localization import LocalizationLoss
from .metrics.localization import LocalizationAccuracy, LocalizationIoU, localization_confusion, localized
from .models.layers import GridHead
from .show.one_object import LocalizationDL
from .show.plots import plot_confusion
from .training.build import build_on_encoder, pooled_head
from .training.checks import check_vocab, clipped, warn_tiny
from .training.learner import TaskLearner
from .training.recipes import Recipe
from .training.task import Task, task_dls, task_learner
from .training.kinds import BLOCK, DLS, LEARNER

__all__ = ['localization_block', 'localization_dls', 'localization_learner', 'LocalizationLearner', 'largest_object']

@checked(**BLOCK)
def localization_block(
    vocab,            # list of class names; `NO_OBJECT` among them is the class of images without an object
    size=224,
    splitter=None,
    item_tfms=None,   # in place of a `JointTransform` that zooms in and out and flips but keeps the object whole;
                      # squish otherwise
    batch_tfms=None,
) -> DataBlock:
    """Image in, one class and one box out, x1 y1 x2 y2 in [-1, 1]; nan = no box. Its source is a list of `Annotation`.
    Where a transform cuts the object away, the label stays and the box is nan"""
    if item_tfms is None: item_tfms = JointTransform(size, train=JitterView((.8, 1.25), 'squish'), keep=True)
    return DataBlock((FileImageBlock, *OneObjectBlock(vocab)), n_inp=1, get_x=annotation_of,
                     get_y=[object_label, object_bbox], dl_type=LocalizationDL,
                     splitter=splitter or AnnotationSplitter(), item_tfms=item_tfms,
                     batch_tfms=batch_geometry(batch_tfms, 'box'))

@checked(**DLS, check=FLAG, empty=choice('class', 'raise'))
def localization_dls(
    annotations,          # list[Annotation] with one object each, or none: boxes (1, 4) or (0, 4). A label without
                          # boxes teaches the class alone
    vocab=None,           # list of class names; None (default): all that occur, sorted, after `NO_OBJECT` where that is
                          # needed
    bs:int=64,
    path='.', valid_pct:float=.2, seed:int=42, num_workers:int=None, device=None, cache=None,
    balance=None,
    empty:str='class',    # images without an object are a 'class' of their own, `NO_OBJECT`, or 'raise'
    check:bool=False,
    **block_kwargs,       # of `localization_block`: `size`, `splitter`, `item_tfms`, `batch_tfms`
) -> DataLoaders:
    """DataLoaders of images, class ids and boxes. Boxes are clipped to the image; those without area are dropped, and
    one warning counts them. Raises `AnnotationError` for missing files, several objects, unknown labels"""
    return warn_tiny(task_dls(LOCALIZATION, annotations, vocab, bs, path, valid_pct, seed, num_workers, device, check,
                              block_kwargs, cache, balance, empty=empty))

def _prepare(annotations, vocab, empty='class'):
    check_relative(annotations, 'bboxes')
    annotations = clipped(annotations)
    none = [a for a in annotations if object_label(a) == NO_OBJECT]
    if none and empty == 'raise': raise AnnotationError(
        f"{none[0].path}: no object ({len(none)} of {len(annotations)} images have none); drop them, or pass "
        "empty='class' to make them a class of their own")
    extra = [NO_OBJECT] if none and (vocab is None or NO_OBJECT not in vocab) else []
    vocab = [*extra, *check_vocab(annotations, vocab)]
    check_labels(annotations, vocab)
    return annotations,vocab

@checked(**LEARNER)
def localization_learner(
    dls:DataLoaders,       # of `localization_dls`
    arch=None,             # name of an encoder (torchvision or timm), torchvision builder, callable
                           # `n_out -> nn.Module` or `nn.Module` that returns (b, n_out + 4); None (default): 'resnet34'
    encoder=None,          # synonym of `arch`
    pretrained=True,
    n_out:int=None,        # classes, `NO_OBJECT` included; None (default): `len(dls.vocab)`
    arch_kwargs=None,      # of `LocalizationHead`: `grid`, `width`, `hidden` of the box, `ps`, `lin_ftrs`, ... of the
                           # class; or of a callable `arch`
    loss_func=None,        # 'smooth_l1' (default), 'l1', 'l2' or 'giou', each beside the cross entropy; or a
                           # `LocalizationLoss(bbox, weight)`
    metrics=None,          # None (default): accuracy, mean IoU, top-1 localization accuracy (class correct, IoU >= 0.5)
    splitter=None, normalize=True, cbs=None,
    **learner_kwargs,
) -> LocalizationLearner:
    "A `LocalizationLearner`; what is pretrained is frozen at first"
    return task_learner(LOCALIZATION, dls, arch, encoder, pretrained, n_out, arch_kwargs, loss_func, metrics, splitter,
                        normalize, cbs, learner_kwargs)

def _loss(o, n_out):
    loss = LocalizationLoss(o or 'smooth_l1') if o is None or isinstance(o, str) else o
    if getattr(loss, 'n_out', 0) is None: loss.n_out = n_out
    return loss

def _metrics(): return [LocalizationAccuracy(), LocalizationIoU(), LocalizationAccuracy(.5)]

class LocalizationHead(nn.Module):
    """(b, c, h, w) -> (b, n_out + 4): class logits of a pooled map, and a box of a map whose places stay apart, as
    x1 y1 x2 y2 in [-1, 1]; x1 < x2 and y1 < y2, corners may lie outside the image"""
    def __init__(self, c, n_out, grid=7, width=64, hidden=256, **kwargs):
        super().__init__()
        self.label = pooled_head(c, n_out, **kwargs)
        self.bbox  = GridHead(c, 4, grid, width, hidden)

    def forward(self, x):
        box = self.bbox(x)
        mid,half = sigmoid_range(box[:,:2], -1, 1),sigmoid_range(box[:,2:], 0, 1)   # half of width and height
        return torch.cat([self.label(x), mid-half, mid+half], 1)

@checked_methods
class LocalizationLearner(TaskLearner):
    "A `TaskLearner` that predicts one class with one box, in pixels of the file, or none"
    in_pixels = True
    not_mixed = 'boxes'

    def eval_metrics(self): return _metrics()

    def prepared(self, annotations):
        annotations = clipped(annotations)
        check_labels(annotations, [*self.dls.vocab, NO_OBJECT])
        none = [a for a in annotations if object_label(a) == NO_OBJECT]
        if none and NO_OBJECT not in self.dls.vocab: raise AnnotationError(
            f"{none[0].path}: no object ({len(none)} of {len(annotations)} images have none), but the model has no "
            "class for such images; drop them")
        return annotations

    def mirror_back(self, p, # (b, c + 4) class probabilities and boxes in [-1, 1] of mirrored images
    ):
        x1,y1,x2,y2 = p[:,-4:].unbind(1)
        return torch.cat([p[:,:-4], torch.stack([-x2, y1, -x1, y2], 1)], 1)

    def in_file(self,
        b,     # (b, 4) x1 y1 x2 y2 in [-1, 1] of the network's input
        sizes, # list of (w, h) of the b files
    ) -> Tensor:
        """(b, 4) boxes in [-1, 1] of the network's input, as pixels of files of `sizes`, a list of (w, h); clipped to
        the image"""
        res = []
        for o,size in zip(b.cpu().double(), sizes):
            view = self.valid_view(size)
            px = view.undo_bboxes(((o.clamp(-1, 1)+1)/2*torch.tensor(view.out*2))[None])[0]
            res.append(px.clamp(min=0).minimum(torch.tensor(size*2)))
        return torch.stack(res)

    def to_annotations(self, probs, images, thresh):
        if thresh is not None: thresh = check_thresh(thresh).item()
        probs,vocab = probs.cpu(),list(self.dls.vocab)
        bboxes = self.in_file(probs[:,-4:], [size for _,size in images]).float().numpy()
        res = []
        for (path,size),(p,i),b in zip(images, zip(*(o.tolist() for o in probs[:,:-4].max(1))), bboxes):
            on = vocab[i] != NO_OBJECT and (thresh is None or p > thresh)
            res.append(Annotation(path, size, [vocab[i]]*on, b[None][:on], scores=[p]*on))
        return res

    def evaluate_per_class(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """For each class: images of it, share of them whose class is correct (recall), share of the predictions that
        are (precision), mean IoU, share with class and box right at IoU .5; nan where it has no meaning"""
        dl = self.whole_dl(ds_idx, dl)
        targets = list(dl.items)
        preds = self.annotate(targets, bs=dl.bs)
        right,iou = (o.numpy() for o in localized(targets, preds))
        t,p = (np.array(o) for o in ([object_label(a) for a in targets], [(a.labels or [NO_OBJECT])[0] for a in preds]))
        both,rows = right & (np.isnan(iou) | (iou >= .5)),[]
        for name in self.dls.vocab:
            on,boxed = t == name,(t == name) & ~np.isnan(iou)
            mean = lambda v: v.mean() if len(v) else np.nan
            rows.append((name, int(on.sum()), mean(right[on]), mean(right[p == name]), mean(iou[boxed]),
                         mean(both[on])))
        return pd.DataFrame(rows, columns=['label', 'n', 'recall', 'precision', 'mean_iou', 'accuracy@.5'])

    def confusion(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """Numbers of images by true class (rows) and predicted class (columns): `metrics.localization_confusion`"""
        dl = self.whole_dl(ds_idx, dl)
        targets = list(dl.items)
        return localization_confusion(targets, self.annotate(targets, bs=dl.bs), self.dls.vocab)

    @checked(normalize=FLAG)
    def plot_confusion(self, ds_idx:int=1, dl=None, normalize:bool=True, ax=None):
        "Draw the confusion matrix of the class"
        return plot_confusion(self.confusion(ds_idx, dl), normalize, ax)

    def tune_threshold(self, *args, **kwargs, # ignored: always an error
    ):
        raise ValueError("the class with the highest score is taken, so that there is no threshold to tune; "
                         "`annotate(items, thresh=...)` drops predictions with a lower score")

@checked()
def largest_object(
    annotations,       # list[Annotation] with boxes
) -> list[Annotation]: # with one object each, or none; objects to ignore are not taken
    "Each image with its largest object alone, by the area of its box inside the image"
    res = []
    for a in annotations:
        if a.bboxes is None: raise AnnotationError(
            f"{a.path}: no boxes are annotated, so that no object is known to be the largest")
        if a.ignore is not None: a = select_objects(a, ~a.ignore)
        b = a.bboxes.clip(0, [*a.size]*2)
        area = (b[:,2:]-b[:,:2]).prod(1)
        res.append(select_objects(a, [int(area.argmax())] if len(area) else []))
    return res

# ImageNet's encoders forget where things are, and must learn it: at fastai's ratio of 100 they hardly do
LOCALIZATION = Task('localization', LocalizationLearner, localization_block, _prepare,
                    partial(build_on_encoder, 'localization', LocalizationHead), _loss, _metrics, n_out=len,
                    recipe=Recipe(base_lr=4e-3, lr_mult=2.), single=True)
