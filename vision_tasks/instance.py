"Instance segmentation: a mask, a box, a class and a score for every object of an image"
from __future__ import annotations
from functools import partial
from dataclasses import replace
import pandas as pd
import torch
from torch import Tensor
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.vision.augment import AffineCoordTfm
from .arguments import FRACTION, checked, checked_methods, choice
from .data.annotation import Annotation
from .data.blocks import FileImageBlock, ObjectBlock, ObjectMasksBlock
from .data.targets import annotation_of, check_masks, object_bboxes, object_masks
from .data.splits import AnnotationSplitter
from .data.geometry import batch_geometry
from .data.transforms import TightBoxes
from .detection import DetectionLearner, detection_loss, object_tfms, prepare_objects, without_background
from .metrics.detection import MeanAP, coco_ap
from .ops.masks import decode_mask, mask_polygons, paste_rle
from .show.objects import InstanceDL
from .training.checks import warn_tiny
from .training.detectors import build_detector
from .training.recipes import Recipe
from .training.task import Task, task_dls, task_learner
from .training.kinds import BLOCK, CHECK, DLS, LEARNER

__all__ = ['instance_block', 'instance_dls', 'instance_learner', 'InstanceLearner']

@checked(**BLOCK, mosaic=FRACTION, copy_paste=FRACTION)
def instance_block(
    vocab,            # list of class names, without background
    size=512,
    splitter=None,
    item_tfms=None,   # in place of a `JointTransform` that zooms in and out and flips; pads to the shape otherwise. It
                      # needs a `JointTransform`: masks follow no other transform of items
    batch_tfms=None,  # in place of `LightJitter()`: brightness and contrast when training. Boxes are tight around
                      # their masks after fastai's `aug_transforms` too
    mosaic:float=0.,  # probability that a training image is a mosaic of four; off in the last fifth of a training
    copy_paste:float=0., # probability that objects of another training image are pasted into one
) -> DataBlock:
    """Image in; out (n, 4) boxes in pixels of the network's input, (n,) ids, 0 = padding, -1 = to be ignored, and
    (n, h, w) masks, uint8. Its source is a list of `Annotation`. `dls.vocab` is `NO_OBJECT`, then `vocab`"""
    item_tfms = object_tfms(item_tfms, size, mosaic, copy_paste)
    batch_tfms = batch_geometry(batch_tfms, 'boxes')
    if any(isinstance(o, AffineCoordTfm) for o in batch_tfms): batch_tfms = [*batch_tfms, TightBoxes()]
    return DataBlock((FileImageBlock, *ObjectBlock(vocab), ObjectMasksBlock), n_inp=1, get_x=annotation_of,
                     get_y=[annotation_of]*3, dl_type=InstanceDL, splitter=splitter or AnnotationSplitter(),
                     item_tfms=item_tfms, batch_tfms=batch_tfms)

@checked(**DLS, check=CHECK)
def instance_dls(
    annotations,          # list[Annotation] with `bboxes` and `masks`, (0, 4) and [] for an image without objects
    vocab=None,
    bs:int=4,
    path='.', valid_pct:float=.2, seed:int=42, num_workers:int=None, device=None, cache=None,
    balance=None,
    check='masks',        # 'masks': look at all masks once (0.1 ms per object), so that a broken one raises now; True:
                          # decode all images too; False: neither; what is broken raises when it is met, and an object
                          # whose mask is empty is background
    **block_kwargs,       # of `instance_block`: `size`, `splitter`, `item_tfms`, `batch_tfms`, `mosaic`, `copy_paste`
) -> DataLoaders:
    """DataLoaders of images, boxes, ids and masks. Boxes are clipped to the image; those without area are dropped, and
    one warning counts them. Objects to ignore need a box alone. Raises `AnnotationError` for missing files, images
    whose boxes or masks are not annotated, masks that cannot be read or are empty, unknown labels"""
    return warn_tiny(task_dls(INSTANCE, annotations, vocab, bs, path, valid_pct, seed, num_workers, device, check,
                              block_kwargs, cache, balance, masks=bool(check)))

def _prepare(annotations, vocab, masks=True):
    def look(a):
        object_bboxes(a)
        (check_masks if masks else object_masks)(a)
    return prepare_objects(annotations, vocab, look)

@checked(**LEARNER)
def instance_learner(
    dls:DataLoaders,       # of `instance_dls`
    arch=None,             # name (`list_archs('instance')`), torchvision builder, other `n_out -> Detector` that
                           # `has_masks`, or one; None (default): 'maskrcnn_resnet50_fpn_v2', with an `encoder`
                           # 'mask_rcnn'
    encoder=None,          # name (torchvision or timm), for 'mask_rcnn'
    pretrained=True,
    n_out:int=None,        # classes without background; None (default): those of `dls.vocab`
    arch_kwargs=None,      # of the builder: `pool`, `anchors`, ...; `size` is that of the dls unless it is given
    loss_func=None,        # None (default): `DetectionLoss()`, the sum of the network's losses
    metrics=None,          # None (default): COCO's mean AP of boxes and of masks, in pixels of the files
    splitter=None, normalize=True, cbs=None,
    **learner_kwargs,
) -> InstanceLearner:
    "An `InstanceLearner`; what is pretrained is frozen at first"
    return task_learner(INSTANCE, dls, arch, encoder, pretrained, n_out, arch_kwargs, loss_func, metrics, splitter,
                        normalize, cbs, learner_kwargs)

def _metrics(): return [MeanAP(), MeanAP(iou_type='segm')]

@checked_methods
class InstanceLearner(DetectionLearner):
    """A `DetectionLearner` whose objects have masks. The network's are probabilities, spread over the box of each
    object; they become pixels where they are drawn, scored or written. Thresholds and the confusion matrix go by
    boxes"""

    def probabilities(self,
        pred,    # detections (b, k, 6) and masks (b, k, m, m)
    ) -> Tensor: # (b, k, 6 + m*m)
        "Detections, each followed by its mask"
        dets,masks = (o.as_subclass(Tensor).float() for o in self.loss_func.activation(pred))
        return torch.cat([dets, masks.flatten(2)], 2)

    def masks_of(self, dets, bboxes, size):
        if dets.shape[1] == 6: return None     # `MeanAP` of boxes drops them
        m = round((dets.shape[1]-6)**.5)
        return paste_rle(dets[:,6:].view(-1, m, m).numpy(), bboxes.numpy(), size)

    def get_preds(self, ds_idx:int=1, dl=None, with_input:bool=False, with_decoded:bool=False, with_loss:bool=False,
                  act=None, inner:bool=False, reorder:bool=True, cbs=None, **kwargs):
        """fastai's `get_preds`: (n, max_dets, 6) x1 y1 x2 y2 score label, pixels of the network's input, label 0 =
        none; with (n, max_dets, m, m) masks in [0, 1]. The targets hold masks too: of a large set, ask
        `with_targs=False`"""
        return super().get_preds(ds_idx, dl, with_input, with_decoded, with_loss, act, inner, reorder, cbs, **kwargs)

    def probabilities_of(self, preds): return self.probabilities(preds)

    @checked(masks=choice('rle', 'polygons'))
    def annotate(self, items, thresh=None, bs:int=None,
                 masks:str='rle',   # 'rle', or 'polygons', which cannot have holes: they are filled
    ) -> list[Annotation]:
        "Objects of `items` with their masks in pixels of the files; an object may have an empty mask"
        res = super().annotate(items, thresh, bs)
        if masks == 'rle': return res
        return [replace(a, masks=[mask_polygons(decode_mask(m, a.size), 'fill') for m in a.masks]) for a in res]

    def coco_scores(self, targets, preds, per_class:bool=False):
        "COCO's figures by the overlap of boxes, as of `coco_ap`, then by that of masks, '_segm' behind their names"
        boxes,masks = (coco_ap(targets, preds, self.dls.vocab[1:], o, per_class=per_class) for o in ('bbox', 'segm'))
        if not per_class: return {**boxes, **{f'{k}_segm': v for k,v in masks.items()}}
        return pd.concat([boxes, masks.drop(columns=['label', 'n']).add_suffix('_segm')], axis=1)

INSTANCE = Task('instance', InstanceLearner, instance_block, _prepare, partial(build_detector, 'instance'),
                detection_loss, _metrics, n_out=without_background, recipe=Recipe(lr_mult=2.))
