"Object detection: a box, a class and a score for every object of an image"
from __future__ import annotations
from functools import partial
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from fastcore.basics import PrettyString, detuplify, tuplify
from fastcore.foundation import L
from fastai.callback.schedule import LRFinder
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.imports import noop
from fastai.learner import Metric
from fastprogress.fastprogress import progress_bar
from .arguments import (COUNT, FLAG, FRACTION, FUNCTION, TEXT, Kind, check_thresh, checked, checked_methods, choice,
                        either)
from .data.annotation import Annotation
from .data.blocks import FileImageBlock, ObjectBlock, ProposalsBlock
from .data.targets import annotation_of, check_labels, object_bboxes, path_of
from .data.check import check_relative
from .data.proposals import Proposals
from .data.splits import AnnotationSplitter
from .data.geometry import batch_geometry
from .data.transforms import JointTransform
from .data.views import FitView, JitterView
from .metrics.detection import MeanAP, coco_ap
from .metrics.detection_curves import best_detection_threshold, detection_confusion
from .losses.detection import DetectionLoss, above
from .models.detection.base import cluster_anchors
from .show.objects import DetectionDL
from .show.plots import plot_confusion
from .training.checks import check_vocab, clipped, warn_tiny
from .training.detectors import build_detector
from .training.learner import TaskLearner
from .training.mosaic import EndMosaic
from .training.recipes import Recipe
from .training.task import Task, task_dls, task_learner
from .training.kinds import BLOCK, DLS, LEARNER

__all__ = ['detection_block', 'detection_dls', 'detection_learner', 'DetectionLearner', 'fit_anchors']

def object_tfms(item_tfms, size, mosaic, copy_paste):
    "`item_tfms`, or the default of tasks with objects. Raises `ValueError` if they would ignore the other arguments"
    if item_tfms is None:
        return JointTransform(size, train=JitterView((.6, 1.4), 'pad'), valid='pad', mosaic=mosaic,
                              copy_paste=copy_paste)
    given = next((k for k,v in dict(mosaic=mosaic, copy_paste=copy_paste).items() if v), None)
    if given is None: return item_tfms
    raise ValueError(f"{given} is a part of the default item_tfms, which were replaced: pass it to them, "
                     f"item_tfms=JointTransform(size, {given}=...)")

PROPOSALS = either(Kind("a method's name, such as 'selective_search'", TEXT.ok),
                   Kind("a `Proposals`, or another function image -> (k, 4) boxes", FUNCTION.ok))

@checked(**BLOCK, proposals=PROPOSALS, mosaic=FRACTION)
def detection_block(
    vocab,            # list of class names, without background
    size=512,
    splitter=None,
    item_tfms=None,   # in place of a `JointTransform` that zooms in and out and flips; pads to the shape otherwise
    batch_tfms=None,
    proposals=None,   # for networks that do not find their own: a method of `Proposals`, a `Proposals`, or another
                      # callable image -> (k, 4) boxes in pixels of the file
    mosaic:float=0.,  # probability that a training image is a mosaic of four; off in the last fifth of a training
) -> DataBlock:
    """Image in, with `proposals` (k, 4) boxes beside it; out (n, 4) boxes in pixels of the network's input and (n,)
    ids, 0 = padding, -1 = to be ignored. Its source is a list of `Annotation`. `dls.vocab` is `NO_OBJECT`, then
    `vocab`"""
    item_tfms = object_tfms(item_tfms, size, mosaic, 0.)
    inputs = [FileImageBlock]
    if proposals is not None: inputs.append(ProposalsBlock(_proposals(proposals)))
    return DataBlock((*inputs, *ObjectBlock(vocab)), n_inp=len(inputs), get_x=[annotation_of, path_of][:len(inputs)],
                     get_y=[annotation_of]*2, dl_type=DetectionDL, splitter=splitter or AnnotationSplitter(),
                     item_tfms=item_tfms, batch_tfms=batch_geometry(batch_tfms, 'boxes'))

def _proposals(o): return Proposals(o) if isinstance(o, str) else o

@checked(**DLS, check=FLAG, proposals=PROPOSALS)
def detection_dls(
    annotations,          # list[Annotation] with `bboxes`, (0, 4) for an image without objects
    vocab=None,
    bs:int=8,
    path='.', valid_pct:float=.2, seed:int=42, num_workers:int=None, device=None, cache=None,
    balance=None,
    proposals=None,       # for networks that do not find their own, as `detection_block` takes them; found now
    check:bool=False,
    **block_kwargs,       # of `detection_block`: `size`, `splitter`, `item_tfms`, `batch_tfms`, `mosaic`
) -> DataLoaders:
    """DataLoaders of images, boxes and ids. Boxes are clipped to the image; those without area are dropped, and one
    warning counts them. Objects to ignore are excluded from loss and metrics. Raises `AnnotationError` for missing
    files, images whose boxes are not annotated, boxes that are fractions of the image, unknown labels; one warning
    counts the boxes that are below a pixel of the network's input"""
    if proposals is not None: proposals = block_kwargs['proposals'] = _proposals(proposals)
    dls = warn_tiny(task_dls(DETECTION, annotations, vocab, bs, path, valid_pct, seed, num_workers, device, check,
                             block_kwargs, cache, balance))
    if isinstance(proposals, Proposals): proposals.prepare([a for dl in dls for a in dl.items])
    return dls

def prepare_objects(annotations, vocab, check=object_bboxes):
    "`annotations` with boxes that are clipped and checked (`check`, each), and the vocab"
    for a in annotations: check(a)
    check_relative(annotations, 'bboxes')
    annotations = clipped(annotations)
    vocab = check_vocab(annotations, vocab)
    check_labels(annotations, vocab)
    return annotations,vocab

@checked(**LEARNER)
def detection_learner(
    dls:DataLoaders,       # of `detection_dls`
    arch=None,             # name (`list_archs('detection')`), torchvision builder, other `n_out -> Detector`, or a
                           # `Detector`; None (default): 'fasterrcnn_resnet50_fpn_v2', with an `encoder` 'faster_rcnn'
    encoder=None,          # name (torchvision or timm), for architectures on any encoder
    pretrained=True,
    n_out:int=None,        # classes without background; None (default): those of `dls.vocab`
    arch_kwargs=None,      # of the builder: `max_dets`, `anchors`, ...; `size` is that of the dls unless it is given
    loss_func=None,        # None (default): `DetectionLoss()`, the sum of the detector's losses
    metrics=None,          # None (default): COCO's mean AP, in pixels of the files
    splitter=None, normalize=True, cbs=None,
    **learner_kwargs,
) -> DetectionLearner:
    "A `DetectionLearner`; what is pretrained is frozen at first"
    return task_learner(DETECTION, dls, arch, encoder, pretrained, n_out, arch_kwargs, loss_func, metrics, splitter,
                        normalize, cbs, learner_kwargs)

def detection_loss(o, n_out):
    "The loss of a detector; `DetectionLoss()` for None"
    return o or DetectionLoss()

def _metrics(): return [MeanAP()]

def without_background(vocab):
    "Number of classes of `dls.vocab`, whose first entry is background"
    return len(vocab) - 1

class _Batches:
    "(x, bboxes, labels, proposals) of all batches of `dl`, in every iteration anew"
    def __init__(self, dl, bar): self.dl,self.bar = dl,bar
    def __iter__(self):
        for x,*proposals,bboxes,labels in progress_bar(self.dl, leave=False) if self.bar else self.dl:
            yield x,bboxes,labels,*(proposals or [None])

class _Detections(Metric):
    "Collects ground truth and predictions in pixels of the files; detections of any score"
    name = 'detections'
    def reset(self): self.targets,self.preds = [],[]
    def accumulate(self, learn):
        dets  = learn.probabilities(learn.pred)
        items = learn.items_of_batch(len(self.targets), len(dets))
        self.targets += items
        self.preds  += learn.to_annotations(dets, [(a.path, a.size) for a in items], 0.)
    @property
    def value(self): return 0.

@checked_methods
class DetectionLearner(TaskLearner):
    "A `TaskLearner` that predicts boxes, classes and scores in pixels of the file"
    in_pixels = True
    not_mixed = 'boxes'

    # --- one batch: the model sees the objects, for its losses are its own affair

    def fit(self, n_epoch:int, lr=None, wd:float=None, cbs=None, reset_opt:bool=False, start_epoch:int=0):
        "fastai's `fit`; then `fit_stages`, where the network has later stages, but not for `lr_find`"
        super().fit(n_epoch, lr, wd, [EndMosaic(), *L(cbs)], reset_opt, start_epoch)
        if not any(isinstance(cb, LRFinder) for cb in L(cbs)): self.fit_stages()

    def fit_stages(self, **kwargs, # of the `fit_stages` of the model
    ):
        """What a network learns after its layers, as R-CNN's SVMs: on the training set, without augmentation. Its own
        `fit_stages` takes batches of (x, bboxes, labels, proposals), `names` of its classes and `kwargs`, and says what
        it gives; `None` from a net that has none"""
        fit = getattr(self.model, 'fit_stages', None)
        if fit is None:
            if kwargs: raise ValueError(f"{type(self.model).__name__} has no stages after its layers, and takes no "
                                        f"{', '.join(kwargs)}")
            return
        self.model.eval()
        res = fit(_Batches(self.whole_dl(0), hasattr(self, 'progress')), **{'names': self.dls.vocab[1:], **kwargs})
        # the log of the epochs has the scores before this
        if self.logger is not noop: print("later stages are fitted: `evaluate` has their scores, `tune_threshold` a "
                                          "threshold that suits them")
        if hasattr(self, 'distributed'): self.distributed.same_buffers(self.model)
        return res

    def _do_one_batch(self):
        x,*proposals = self.xb
        out = self.model(x, *self.yb, **({'proposals': proposals[0]} if proposals else {}))
        if self.training or len(self.yb): parts = out if self.training else out[0]
        # in training there are no detections: `pred` is then the losses, by the order of their names
        if self.training: self.pred = torch.stack([parts[k].detach().float().mean() for k in sorted(parts)])
        else:             self.pred = out[1] if len(self.yb) else out
        self('after_pred')
        if len(self.yb):
            self.loss_grad = self.loss_func(parts, *self.yb)
            self.loss = self.loss_grad.clone()
        self('after_loss')
        if not self.training or not len(self.yb): return
        self._do_grad_opt()

    def get_preds(self, ds_idx:int=1, dl=None, with_input:bool=False, with_decoded:bool=False, with_loss:bool=False,
                  act=None, inner:bool=False, reorder:bool=True, cbs=None, **kwargs):
        "fastai's `get_preds`: (n, max_dets, 6) x1 y1 x2 y2 score label, pixels of the network's input, label 0 = none"
        if with_loss:      # a detector's losses are means over a batch
            dl = self.set_with_images(ds_idx) if dl is None else dl
            dl = dl.new(bs=1, shuffle=False, drop_last=False)
        return super().get_preds(ds_idx, dl, with_input, with_decoded, with_loss, act, inner, reorder, cbs, **kwargs)

    # --- predictions

    @property
    def classes(self): return list(self.dls.vocab[1:])   # without background

    def to_annotations(self,
        dets, # (b, max_dets, 6) x1 y1 x2 y2 score label, pixels of the network's input; masks follow in the last axis
              # where there are any
        images, thresh,
    ):
        thresh = self.loss_func.thresh if thresh is None else thresh
        dets = dets.as_subclass(Tensor).float().cpu()
        on,vocab,res = above(dets, torch.as_tensor(check_thresh(thresh, len(self.dls.vocab)-1))),list(self.dls.vocab),[]
        for (path,size),d,keep in zip(images, dets, on):
            d,hi  = d[keep],torch.tensor([*size]*2)
            whole = self.valid_view(size).undo_bboxes(d[:,:4].double())
            b = whole.clamp(min=0).minimum(hi)
            inside = (b[:,2:] > b[:,:2]).all(1)
            b,d,whole = b[inside],d[inside],whole[inside]
            res.append(Annotation(path, size, [vocab[i] for i in d[:,5].int().tolist()], b.float().numpy(),
                                  scores=d[:,4].numpy(), masks=self.masks_of(d, whole, size)))
        return res

    def masks_of(self,
        dets,   # (k, 6 + m*m) detections of one image, each with its (m, m) mask flattened
        bboxes, # (k, 4) their boxes in pixels of the image file
        size,   # (w, h) of the image file
    ):
        "Masks of the detections of an image, whose `bboxes` may reach beyond it; `None` if the model predicts none"
        return None

    def annotate(self, items, thresh=None, bs:int=None) -> list[Annotation]:
        "Objects of `items` in pixels of the files: those whose score is above the threshold, the best first"
        return super().annotate(items, thresh, bs)

    def decoded_of(self, decoded):
        "Without padding, and without detections whose score is not above the threshold"
        on = tuplify(decoded)[0][:,5] > 0
        return detuplify(tuple(o[on] for o in tuplify(decoded)))

    def tta(self, ds_idx=1, dl=None, n=4, item_tfms=None, batch_tfms=None, beta=.25, use_max=False):
        "Raises `ValueError`: boxes have no average"
        raise ValueError("boxes of an image and of its mirror image have no average: use annotate(items)")

    def plot_top_losses(self, k:int=9, ds_idx:int=1, dl=None, largest:bool=True, **kwargs):
        "Draw the `k` images with the largest (or smallest) loss, that first"
        super().plot_top_losses(k, ds_idx, dl, largest, **kwargs)

    def summary(self):
        "The parts of the detector, two levels deep, with their numbers of parameters, all and trainable"
        rows = [f"{'module':<34}{'kind':<30}{'parameters':>14}{'trained':>14}"]
        def count(ps): return f'{sum(p.numel() for p in ps):,}'
        for name,m in [('', self.model), *self.model.named_modules()]:
            if name.count('.') > 2 or (m is self.model and rows[1:]) or not any(True for _ in m.parameters()): continue
            trained = (p for p in m.parameters() if p.requires_grad)
            rows.append(f"{name or 'all':<34}{type(m).__name__:<30}{count(m.parameters()):>14}{count(trained):>14}")
        return PrettyString('\n'.join(rows))

    # --- scores

    def in_files(self,
        ds_idx:int=1, dl=None,
        metrics=(), # further metrics to compute in the same pass
    ):
        "Ground truth and predictions, lists of `Annotation` with every detection; the loss; the values of `metrics`"
        seen = _Detections()
        with self.scored_by([seen, *metrics]):
            loss,_,*rest = self.validate(dl=self.whole_dl(ds_idx, dl))
        return seen.targets,seen.preds,loss,*rest

    def evaluate(self, ds_idx:int=1, dl=None) -> dict:
        "The loss; then COCO's figures, in pixels of the files; then further metrics of the learner's own"
        own = [m for m in self.own_metrics() if not isinstance(m, MeanAP)]
        targets,preds,loss,*rest = self.in_files(ds_idx, dl, own)
        return {'valid_loss': loss, **self.coco_scores(targets, preds), **{m.name: v for m,v in zip(own, rest)}}

    def coco_scores(self,
        targets,                # list[Annotation], the ground truth
        preds,                 # list[Annotation] of the same images, the detections
        per_class:bool=False, # a row for each class
    ):
        "COCO's scores, as `coco_ap` returns them"
        return coco_ap(targets, preds, self.dls.vocab[1:], per_class=per_class)

    def evaluate_per_class(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        "For each class: objects of it, AP, AP50, AP75 and AR, as COCO counts them"
        targets,preds,*_ = self.in_files(ds_idx, dl)
        return self.coco_scores(targets, preds, per_class=True)

    @checked(score=choice('f1', 'fbeta', None))
    def tune_threshold(self,
        score:str='fbeta',    # 'fbeta', or 'f1', which means the same
        per_class:bool=False, # one threshold for each class, or one for all
        ds_idx:int=1, dl=None,
        beta:float=1.,        # weight of recall over precision
        iou:float=.5,         # least IoU at which a detection matches an object, in [0, 1]
    ):
        """Set the threshold that `annotate`, `predict` and `show_results` use to the one with the best F-beta; it is
        exported with the learner. (threshold(s), value(s))"""
        targets,preds,*_ = self.in_files(ds_idx, dl)
        t,value = best_detection_threshold(targets, preds, iou, beta, per_class, self.dls.vocab[1:])
        self.loss_func.thresh = t
        return t,value

    def confusion(self,
        ds_idx:int=1, dl=None,
        iou:float=.5, # least IoU at which a detection matches an object, in [0, 1]
        thresh=None,  # in place of the learner's own threshold: a number in [0, 1], or one per class; None (default):
                      # the learner's
    ) -> pd.DataFrame:
        "Objects by true class (rows) and predicted class (columns); a row of false positives, a column of missed ones"
        (targets,preds,*_),thresh = self.in_files(ds_idx, dl),self.loss_func.thresh if thresh is None else thresh
        return detection_confusion(targets, preds, self.dls.vocab[1:], iou, thresh)

    @checked(normalize=FLAG)
    def plot_confusion(self,
        ds_idx:int=1, dl=None,
        iou:float=.5, # least IoU at which a detection matches an object, in [0, 1]
        thresh=None,  # in place of the learner's own threshold: a number in [0, 1], or one per class; None (default):
                      # the learner's
        normalize:bool=True, ax=None,
    ):
        "Draw the confusion matrix"
        return plot_confusion(self.confusion(ds_idx, dl, iou, thresh), normalize, ax)

@checked(method=choice('pad', 'squish'), levels=COUNT, sizes=COUNT, ratios=COUNT)
def fit_anchors(
    annotations,         # list[Annotation] with boxes, of the training set
    size=512,            # of the network's input in pixels: (w, h), or one number for both
    method='pad',        # how images are resized to it: 'pad', as `detection_block` does, or 'squish'
    levels:int=5,        # maps of the network: 5 for two-stage networks, RetinaNet and FCOS
    sizes:int=1,         # on each level: 1 for `faster_rcnn`, 3 for `retinanet`
    ratios:int=3,        # aspect ratios
) -> tuple[tuple,tuple]: # sizes by level in pixels, height/width: `arch_kwargs=dict(anchors=fit_anchors(anns))`
    "Anchors of the sizes and shapes that the objects have in the network's input, by k-means"
    out,whs = (size, size) if isinstance(size, int) else tuple(size),[np.zeros((0, 2))]
    for a in clipped(annotations):
        (x1,y1,x2,y2),(u1,v1,u2,v2) = FitView(method)(*a.size, out)
        b = object_bboxes(a)
        whs.append((b[:,2:]-b[:,:2])*[(u2-u1)/(x2-x1), (v2-v1)/(y2-y1)])
    return cluster_anchors(torch.from_numpy(np.concatenate(whs)), levels, sizes, ratios)

# ImageNet's encoders forget where things are, and must learn it: at fastai's ratio of 100 they hardly do
DETECTION = Task('detection', DetectionLearner, detection_block, prepare_objects, partial(build_detector, 'detection'),
                 detection_loss, _metrics, n_out=without_background, recipe=Recipe(lr_mult=2.))
