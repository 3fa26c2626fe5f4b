"Object detection: a box, a name and a score for every object of a picture"
from __future__ import annotations
from functools import partial
from inspect import signature
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from fastcore.basics import PrettyString, detuplify, tuplify
from fastcore.foundation import L
from fastai.callback.schedule import LRFinder
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.imports import noop
from fastai.learner import Metric
from fastai.vision.augment import Resize
from fastprogress.fastprogress import progress_bar
from .arguments import (COUNT, FLAG, FUNCTION, TEXT, Kind, check_thresh, checked, checked_methods, choice, either)
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
from .training.build import came_pretrained, make_learner, takes_pretrained
from .training.checks import check_data, check_vocab, clipped, warn_tiny
from .training.images import picture_of
from .training.learner import TaskLearner
from .training.loaders import splitter_of, task_dls
from .losses.detection import DetectionLoss, above
from .models.detection.base import Detector, cluster_anchors
from .models.detection.torchvision import torchvision_detector
from .models.layers import check_n_out
from .models.registry import get_arch
from .show.objects import DetectionDL
from .show.plots import plot_confusion
from .training.kinds import BLOCK, DLS, LEARNER

__all__ = ['detection_block', 'detection_dls', 'detection_learner', 'DetectionLearner', 'fit_anchors']

PROPOSALS = either(Kind("a method's name, such as 'selective_search'", TEXT.ok),
                   Kind("a `Proposals`, or another function image -> (k, 4) boxes", FUNCTION.ok))

@checked(**BLOCK, proposals=PROPOSALS)
def detection_block(
    vocab,            # list of names, without background
    size=512,         # of the network's input in pixels: (w, h), or one number for both
    splitter=None,    # annotations -> indices of train, of valid; None = the annotations' own, else 20 % at random
    item_tfms=None,   # in place of a `JointTransform` that zooms both ways and flips; pads to the shape otherwise
    batch_tfms=None,  # in place of `LightJitter()`: brightness and contrast when training
    proposals=None,   # for nets that do not find their own: a method of `Proposals`, one of these, or another callable
                      # picture -> (k, 4) boxes in pixels of the file
) -> DataBlock:
    """Picture in, with `proposals` (k, 4) boxes beside it; out (n, 4) boxes in pixels of the network's input and (n,)
    ids, 0 = padding, -1 = to be ignored. Its source is a list of `Annotation`. `dls.vocab` is `NO_OBJECT`, then
    `vocab`"""
    if item_tfms is None: item_tfms = JointTransform(size, train=JitterView((.6, 1.4), 'pad'), valid='pad')
    inputs = [FileImageBlock]
    if proposals is not None: inputs.append(ProposalsBlock(_proposals(proposals)))
    return DataBlock((*inputs, *ObjectBlock(vocab)), n_inp=len(inputs), get_x=[annotation_of, path_of][:len(inputs)],
                     get_y=[annotation_of]*2, dl_type=DetectionDL, splitter=splitter or AnnotationSplitter(),
                     item_tfms=item_tfms, batch_tfms=batch_geometry(batch_tfms, 'boxes'))

def _proposals(o): return Proposals(o) if isinstance(o, str) else o

@checked(**DLS, check=FLAG, proposals=PROPOSALS)
def detection_dls(
    annotations,          # list[Annotation] with `bboxes`, (0, 4) where there is nothing
    vocab=None,           # list of names; None = all that occur, sorted
    bs:int=8,             # pictures in a batch, at most as many as there are to train on
    path='.',             # where the learner saves
    valid_pct:float=.2,   # share of valid, where the annotations do not say
    seed:int=42,          # of that split
    num_workers:int=None, # processes that load; None = one per core
    device=None,          # None = the GPU where there is one
    proposals=None,       # for nets that do not find their own, as `detection_block` takes them; found now, and kept
    check:bool=False,     # decode all images once, in threads, so that a broken one raises now and not in the
                          # middle of the first epoch
    **block_kwargs,       # `size`, `splitter`, `item_tfms`, `batch_tfms`, as `detection_block` takes them
) -> DataLoaders:
    """DataLoaders of pictures, boxes and ids. Boxes are clipped to the picture; what has no area in it goes, and one
    warning says how many. Objects to be ignored take part neither in the loss nor in penalties. Raises
    `AnnotationError` for missing files, images whose boxes are not annotated, boxes that are fractions of the image,
    unknown labels; one warning counts the boxes that are below a pixel of the network's input"""
    annotations = check_data(annotations)
    for a in annotations: object_bboxes(a)
    check_relative(annotations, 'bboxes')
    annotations = clipped(annotations)
    vocab = check_vocab(annotations, vocab)
    splitter = splitter_of(block_kwargs, valid_pct, seed)
    if proposals is not None: proposals = _proposals(proposals)
    block = detection_block(vocab, splitter=splitter, proposals=proposals, **block_kwargs)
    dls = warn_tiny(task_dls(block, annotations, vocab, bs, path, num_workers, device, check))
    if isinstance(proposals, Proposals): proposals.prepare([a for dl in dls for a in dl.items])
    return dls

@checked(**LEARNER)
def detection_learner(
    dls:DataLoaders,       # of `detection_dls`
    arch=None,             # a name of `list_archs('detection')`, torchvision's builder, another `n_out -> Detector`, or
                           # a `Detector`; None = 'fasterrcnn_resnet50_fpn_v2', with an `encoder` 'faster_rcnn'
    encoder=None,          # torchvision's or timm's name, for archs that stand on any
    pretrained=True,       # True: torchvision's weights of the whole net, or ImageNet's of `encoder`; 'encoder': those
                           # of the encoder alone; the path of a local state dict of either; False: none
    n_out:int=None,        # classes without background; None = those of `dls.vocab`
    arch_kwargs=None,      # for the builder: `max_dets`, `anchors`, ...; `size` is that of the dls unless it is given
    loss_func=None,        # None = `DetectionLoss()`, the sum of the detector's losses
    metrics=None,          # None = COCO's mean AP, in pixels of the files
    splitter=None,         # model -> parameter groups; None = encoder and the rest
    normalize=True,        # of the images: True = as the net says, whose `mean` and `std` None mean that it
                           # normalizes itself; `(mean, std)`, each three numbers for pixels in [0, 1]; or None, as
                           # they are. What the DataLoaders did before is replaced
    cbs=None,              # fastai callbacks of every training and validation; None (default): fastai's default
                           # callbacks only
    **learner_kwargs,      # of fastai's `Learner`
) -> DetectionLearner:
    "A `DetectionLearner`; the encoder is frozen at first where anything is pretrained"
    n_out = check_n_out(len(dls.vocab)-1 if n_out is None else n_out)
    model = make_detector('detection', arch, encoder, n_out, pretrained, arch_kwargs, dls)
    metrics = [MeanAP()] if metrics is None else metrics
    return make_learner(DetectionLearner, dls, model, loss_func or DetectionLoss(), metrics, splitter, cbs,
                        came_pretrained(arch, pretrained), normalize=normalize, **learner_kwargs)

DEFAULTS = dict(detection=('fasterrcnn_resnet50_fpn_v2', 'faster_rcnn'),   # by itself, and with an `encoder`
                instance=('maskrcnn_resnet50_fpn_v2', 'mask_rcnn'))

def make_detector(task, arch, encoder, n_out, pretrained, arch_kwargs, dls) -> Detector:
    "The net of a learner of `task`; `ValueError` where it is one of the other task"
    kw = dict(arch_kwargs or {})
    if isinstance(arch, nn.Module): model = arch
    else:
        if encoder is not None: kw['encoder'] = encoder
        arch = arch or DEFAULTS[task][encoder is not None]
        name = arch if isinstance(arch, str) else getattr(arch, '__name__', None)
        theirs = getattr(arch, '__module__', '').startswith('torchvision.')
        known  = takes_pretrained(arch)
        build = arch
        if isinstance(arch, str) and 'keypointrcnn' not in arch: build = get_arch(arch, task)
        elif isinstance(arch, str) or theirs: build = partial(torchvision_detector, arch)   # or says why not
        # anchors and maps are made for the size of the pictures
        sizes = [o.size for o in dls.valid.after_item.fs if isinstance(o, (JointTransform, Resize))]
        if sizes and 'size' in signature(build).parameters: kw.setdefault('size', tuple(sizes[0]))
        try: model = build(n_out, pretrained=pretrained, **kw) if known else build(n_out, **kw)
        except TypeError as e:
            if 'unexpected keyword' not in str(e): raise
            raise ValueError(f"{name}: {e}; of arch_kwargs and encoder this net takes other ones") from e
    if not isinstance(model, Detector): raise ValueError(
        f"expected a `Detector`, which gives losses when training and detections otherwise, got a "
        f"{type(model).__name__}; subclass vision_tasks.models.detection.base.Detector")
    if model.needs_proposals != (dls.n_inp > 1): raise ValueError(
        "this net does not find its own proposals: make the DataLoaders with `detection_dls(..., "
        "proposals='selective_search')`" if model.needs_proposals else
        "this net finds its own proposals: make the DataLoaders without `proposals`")
    if model.has_masks != (task == 'instance'): raise ValueError(
        "this net learns masks besides boxes: train it with `instance_dls` and `instance_learner`" if model.has_masks
        else "this net finds boxes, but no masks: take one of `list_archs('instance')`, or `detection_learner`")
    n = len(getattr(dls.valid_ds, 'tls', ())) - dls.n_inp   # boxes, labels, and masks if there are any
    if n == 1: raise ValueError(f"the DataLoaders give no boxes: make them with `{task}_dls`")
    if n == 2 and task == 'instance': raise ValueError(
        "the DataLoaders give boxes without masks, and this net learns masks: make them with `instance_dls`")
    if n == 3 and task == 'detection': raise ValueError(
        "the DataLoaders hold masks, which this net does not learn: make them with `detection_dls`")
    return model

class _Batches:
    "(x, bboxes, labels, proposals) of all batches of `dl`, as often as one asks"
    def __init__(self, dl, bar): self.dl,self.bar = dl,bar
    def __iter__(self):
        for x,*proposals,bboxes,labels in progress_bar(self.dl, leave=False) if self.bar else self.dl:
            yield x,bboxes,labels,*(proposals or [None])

class _Detections(Metric):
    "Collects truth and answers in pixels of the files; detections of any score"
    name = 'detections'
    def reset(self): self.truth,self.said = [],[]
    def accumulate(self, learn):
        dets  = learn.probabilities(learn.pred)
        items = learn.items_of_batch(len(self.truth), len(dets))
        self.truth += items
        self.said  += learn.to_annotations(dets, [(a.path, a.size) for a in items], 0.)
    @property
    def value(self): return 0.

@checked_methods
class DetectionLearner(TaskLearner):
    "A `TaskLearner` that answers with boxes, names and scores in pixels of the file"
    in_pixels = True
    lr_mult = 2.   # ImageNet's encoders forget where things are, and must learn it: at fastai's 100 they hardly do
    not_mixed = 'boxes'

    # --- one batch: the model sees the objects, for its losses are its own affair

    def fit(self, n_epoch:int, lr=None, wd:float=None, cbs=None, reset_opt:bool=False, start_epoch:int=0):
        "fastai's `fit`; then `fit_stages`, where the net has later stages and it is not `lr_find` that asks"
        super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)
        if not any(isinstance(cb, LRFinder) for cb in L(cbs)): self.fit_stages()

    def fit_stages(self, **kwargs, # of the `fit_stages` of the model
    ):
        """What a net learns after its layers, as R-CNN's SVMs: on the training set, without augmentation. The net's own
        `fit_stages` takes batches of (x, bboxes, labels, proposals), `names` of its classes and `kwargs`, and says what
        it gives; `None` from a net that has none"""
        fit = getattr(self.model, 'fit_stages', None)
        if fit is None:
            if kwargs: raise ValueError(f"{type(self.model).__name__} has no stages after its layers, and takes no "
                                        f"{', '.join(kwargs)}")
            return
        self.model.eval()
        res = fit(_Batches(self.whole_dl(0), hasattr(self, 'progress')), **{'names': self.dls.vocab[1:], **kwargs})
        # the log of the epochs has the scores before: let nobody take them for the net's
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

    def prepared(self, annotations):
        for a in annotations: object_bboxes(a)
        annotations = clipped(annotations)
        check_labels(annotations, self.dls.vocab[1:])
        return annotations

    def to_annotations(self,
        dets, # (b, max_dets, 6) x1 y1 x2 y2 score label, pixels of the network's input; masks follow in the last axis
              # where there are any
        pictures, thresh,
    ):
        thresh = self.loss_func.thresh if thresh is None else thresh
        dets = dets.as_subclass(Tensor).float().cpu()
        on,vocab,res = above(dets, torch.as_tensor(check_thresh(thresh, len(self.dls.vocab)-1))),list(self.dls.vocab),[]
        for (path,size),d,keep in zip(pictures, dets, on):
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
        "The masks of a picture's detections, whose `bboxes` may reach out of it; `None` where there are no masks"
        return None

    def predict(self, item, rm_type_tfms=0, with_input=False):
        "The `Annotation`; the detections (k, 6) that count, in pixels of the network's input; and all (max_dets, 6)"
        dl = self.dls.test_dl(self.pictures_of([item]), rm_type_tfms=rm_type_tfms, num_workers=0)
        inp,dets,_,dec = self.get_preds(dl=dl, with_input=True, with_decoded=True)
        said,on = self.to_annotations(self.probabilities(dets), [picture_of(item)], None)[0],tuplify(dec)[0][0][:,5] > 0
        dec  = detuplify(tuple(o[0][on] for o in tuplify(dec)))
        dets = detuplify(tuple(o[0] for o in tuplify(dets)))
        return ((tuplify(inp)[0][0],) if with_input else ()) + (said,dec,dets)

    def mirror_back(self, probs):
        raise ValueError("boxes of a picture and of its mirror image have no average; leave tta out")

    def tta(self, ds_idx=1, dl=None, n=4, item_tfms=None, batch_tfms=None, beta=.25, use_max=False):
        "Raises `ValueError`: boxes have no average"
        self.mirror_back(None)

    def plot_top_losses(self, k:int=9, ds_idx:int=1, dl=None, largest:bool=True, **kwargs):
        "Draw the `k` pictures with the largest (or smallest) loss, that first"
        super().plot_top_losses(k, ds_idx, dl, largest, **kwargs)

    def summary(self):
        "The parts of the detector, two levels deep, with their parameters; what is trained at present beside"
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
        "Truth and answers, two lists of `Annotation` with every detection; the loss; the values of further `metrics`"
        seen = _Detections()
        with self.scored_by([seen, *metrics]):
            loss,_,*rest = self.validate(dl=self.whole_dl(ds_idx, dl))
        return seen.truth,seen.said,loss,*rest

    def evaluate(self, ds_idx:int=1, dl=None) -> dict:
        "The loss; then COCO's figures, in pixels of the files; then further metrics of the learner's own"
        own = [m for m in self.own_metrics() if not isinstance(m, MeanAP)]
        truth,said,loss,*rest = self.in_files(ds_idx, dl, own)
        return {'valid_loss': loss, **self.coco_scores(truth, said), **{m.name: v for m,v in zip(own, rest)}}

    def coco_scores(self,
        truth,                # list[Annotation], the ground truth
        said,                 # list[Annotation] of the same images, the detections
        per_class:bool=False, # a row for each class
    ):
        "COCO's figures of `said`, as of `coco_ap`"
        return coco_ap(truth, said, self.dls.vocab[1:], per_class=per_class)

    def evaluate_per_class(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        "For each class: objects of it, AP, AP50, AP75 and AR, as COCO counts them"
        truth,said,*_ = self.in_files(ds_idx, dl)
        return self.coco_scores(truth, said, per_class=True)

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
        truth,said,*_ = self.in_files(ds_idx, dl)
        t,value = best_detection_threshold(truth, said, iou, beta, per_class, self.dls.vocab[1:])
        self.loss_func.thresh = t
        return t,value

    def confusion(self,
        ds_idx:int=1, dl=None,
        iou:float=.5, # least IoU at which a detection matches an object, in [0, 1]
        thresh=None,  # in place of the learner's own threshold: a number in [0, 1], or one per class; None (default):
                      # the learner's
    ) -> pd.DataFrame:
        "Objects by true class (rows) and answer (columns), with a row and a column for what is neither"
        (truth,said,*_),thresh = self.in_files(ds_idx, dl),self.loss_func.thresh if thresh is None else thresh
        return detection_confusion(truth, said, self.dls.vocab[1:], iou, thresh)

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
    method='pad',        # how pictures are brought to it: 'pad', as `detection_block` does, or 'squish'
    levels:int=5,        # maps of the net: 5 for two-stage nets, RetinaNet and FCOS
    sizes:int=1,         # on each: 1 for `faster_rcnn`, 3 for `retinanet`
    ratios:int=3,        # aspect ratios
) -> tuple[tuple,tuple]: # sizes by level in pixels, height/width: `arch_kwargs=dict(anchors=fit_anchors(anns))`
    "Anchors of the sizes and shapes that the objects have in the network's input, by k-means"
    out,whs = (size, size) if isinstance(size, int) else tuple(size),[np.zeros((0, 2))]
    for a in clipped(annotations):
        (x1,y1,x2,y2),(u1,v1,u2,v2) = FitView(method)(*a.size, out)
        b = object_bboxes(a)
        whs.append((b[:,2:]-b[:,:2])*[(u2-u1)/(x2-x1), (v2-v1)/(y2-y1)])
    return cluster_anchors(torch.from_numpy(np.concatenate(whs)), levels, sizes, ratios)
