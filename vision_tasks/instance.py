"Instance segmentation: a mask, a box, a name and a score for every object of a picture"
from __future__ import annotations
from dataclasses import replace
import pandas as pd
import torch
from torch import Tensor
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.vision.augment import AffineCoordTfm
from .arguments import FLAG, checked, checked_methods, choice
from .data.annotation import Annotation
from .data.blocks import FileImageBlock, ObjectBlock, ObjectMasksBlock
from .data.targets import annotation_of, check_masks, object_bboxes, object_masks
from .data.check import check_relative
from .data.splits import AnnotationSplitter
from .data.geometry import batch_geometry
from .data.transforms import JointTransform, TightBoxes
from .data.views import JitterView
from .detection import DetectionLearner, make_detector
from .metrics.detection import MeanAP, coco_ap
from .training.build import came_pretrained, make_learner
from .training.checks import check_data, check_vocab, clipped, warn_tiny
from .training.loaders import splitter_of, task_dls
from .losses.detection import DetectionLoss
from .models.layers import check_n_out
from .ops.masks import decode_mask, mask_polygons, paste_rle
from .show.objects import InstanceDL
from .training.kinds import BLOCK, CHECK, DLS, LEARNER

__all__ = ['instance_block', 'instance_dls', 'instance_learner', 'InstanceLearner']

@checked(**BLOCK)
def instance_block(
    vocab,            # list of names, without background
    size=512,         # of the network's input in pixels: (w, h), or one number for both
    splitter=None,    # annotations -> indices of train, of valid; None = the annotations' own, else 20 % at random
    item_tfms=None,   # in place of a `JointTransform` that zooms both ways and flips; pads to the shape otherwise. One
                      # there must be: masks follow no other transform of items
    batch_tfms=None,  # in place of `LightJitter()`: brightness and contrast when training. Boxes are tight around
                      # their masks after fastai's `aug_transforms` too
) -> DataBlock:
    """Picture in; out (n, 4) boxes in pixels of the network's input, (n,) ids, 0 = padding, -1 = to be ignored, and
    (n, h, w) masks, uint8. Its source is a list of `Annotation`. `dls.vocab` is `NO_OBJECT`, then `vocab`"""
    if item_tfms is None: item_tfms = JointTransform(size, train=JitterView((.6, 1.4), 'pad'), valid='pad')
    batch_tfms = batch_geometry(batch_tfms, 'boxes')
    if any(isinstance(o, AffineCoordTfm) for o in batch_tfms): batch_tfms = [*batch_tfms, TightBoxes()]
    return DataBlock((FileImageBlock, *ObjectBlock(vocab), ObjectMasksBlock), n_inp=1, get_x=annotation_of,
                     get_y=[annotation_of]*3, dl_type=InstanceDL, splitter=splitter or AnnotationSplitter(),
                     item_tfms=item_tfms, batch_tfms=batch_tfms)

@checked(**DLS, check=CHECK)
def instance_dls(
    annotations,          # list[Annotation] with `bboxes` and `masks`, (0, 4) and [] where there is nothing
    vocab=None,           # list of names; None = all that occur, sorted
    bs:int=4,             # pictures in a batch, at most as many as there are to train on
    path='.',             # where the learner saves
    valid_pct:float=.2,   # share of valid, where the annotations do not say
    seed:int=42,          # of that split
    num_workers:int=None, # processes that load; None = one per core
    device=None,          # None = the GPU where there is one
    check='masks',        # 'masks': look at all masks once (.1 ms an object), so that a broken one raises now; True:
                          # decode all images too; False: neither; what is broken raises when it is met, and an object
                          # whose mask is empty is background
    **block_kwargs,       # `size`, `splitter`, `item_tfms`, `batch_tfms`, as `instance_block` takes them
) -> DataLoaders:
    """DataLoaders of pictures, boxes, ids and masks. Boxes are clipped to the picture; what has no area in it goes, and
    one warning says how many. Of what is to be ignored, the box is enough. Raises `AnnotationError` for missing files,
    pictures whose boxes or masks are not annotated, masks that cannot be read or are empty, unknown labels"""
    annotations = check_data(annotations)
    for a in annotations:
        object_bboxes(a)
        (check_masks if check else object_masks)(a)
    check_relative(annotations, 'bboxes')
    annotations = clipped(annotations)
    vocab = check_vocab(annotations, vocab)
    splitter = splitter_of(block_kwargs, valid_pct, seed)
    block = instance_block(vocab, splitter=splitter, **block_kwargs)
    return warn_tiny(task_dls(block, annotations, vocab, bs, path, num_workers, device, check is True))

@checked(**LEARNER)
def instance_learner(
    dls:DataLoaders,       # of `instance_dls`
    arch=None,             # a name of `list_archs('instance')`, torchvision's builder, another `n_out -> Detector` that
                           # `has_masks`, or one; None = 'maskrcnn_resnet50_fpn_v2', with an `encoder` 'mask_rcnn'
    encoder=None,          # torchvision's or timm's name, for 'mask_rcnn'
    pretrained=True,       # True: torchvision's weights of the whole net, or ImageNet's of `encoder`; 'encoder': those
                           # of the encoder alone; the path of a local state dict of either; False: none
    n_out:int=None,        # classes without background; None = those of `dls.vocab`
    arch_kwargs=None,      # for the builder: `pool`, `anchors`, ...; `size` is that of the dls unless it is given
    loss_func=None,        # None = `DetectionLoss()`, the sum of the net's losses
    metrics=None,          # None = COCO's mean AP of boxes and of masks, in pixels of the files
    splitter=None,         # model -> parameter groups; None = encoder and the rest
    normalize=True,        # of the images: True = as the net says, whose `mean` and `std` None mean that it
                           # normalizes itself; `(mean, std)`, each three numbers for pixels in [0, 1]; or None, as
                           # they are. What the DataLoaders did before is replaced
    cbs=None,              # fastai callbacks of every training and validation; None (default): fastai's default
                           # callbacks only
    **learner_kwargs,      # of fastai's `Learner`
) -> InstanceLearner:
    "An `InstanceLearner`; the encoder is frozen at first where anything is pretrained"
    n_out = check_n_out(len(dls.vocab)-1 if n_out is None else n_out)
    model = make_detector('instance', arch, encoder, n_out, pretrained, arch_kwargs, dls)
    metrics = [MeanAP(), MeanAP(iou_type='segm')] if metrics is None else metrics
    return make_learner(InstanceLearner, dls, model, loss_func or DetectionLoss(), metrics, splitter, cbs,
                        came_pretrained(arch, pretrained), normalize=normalize, **learner_kwargs)

@checked_methods
class InstanceLearner(DetectionLearner):
    """A `DetectionLearner` whose objects have masks. The net's are probabilities, spread over the box of each object;
    they become pixels where they are drawn, scored or written. Thresholds and the confusion matrix go by boxes"""

    def probabilities(self,
        pred,    # detections (b, k, 6) and masks (b, k, m, m)
    ) -> Tensor: # (b, k, 6 + m*m)
        "Detections with their masks behind"
        dets,masks = (o.as_subclass(Tensor).float() for o in self.loss_func.activation(pred))
        return torch.cat([dets, masks.flatten(2)], 2)

    def masks_of(self, dets, bboxes, size):
        if dets.shape[1] == 6: return None     # `MeanAP` of boxes leaves them out
        m = round((dets.shape[1]-6)**.5)
        return paste_rle(dets[:,6:].view(-1, m, m).numpy(), bboxes.numpy(), size)

    def prepared(self, annotations):
        for a in annotations: check_masks(a)
        return super().prepared(annotations)

    def get_preds(self, ds_idx:int=1, dl=None, with_input:bool=False, with_decoded:bool=False, with_loss:bool=False,
                  act=None, inner:bool=False, reorder:bool=True, cbs=None, **kwargs):
        """fastai's `get_preds`: (n, max_dets, 6) x1 y1 x2 y2 score label, pixels of the network's input, label 0 =
        none; with (n, max_dets, m, m) masks in [0, 1]. The targets hold masks too: of a large set, ask
        `with_targs=False`"""
        return super().get_preds(ds_idx, dl, with_input, with_decoded, with_loss, act, inner, reorder, cbs, **kwargs)

    @checked(tta=FLAG, masks=choice('rle', 'polygons'))
    def annotate(self, items, thresh=None, bs:int=None, tile=None, tta:bool=False, postprocess=None,
                 masks:str='rle',   # 'rle', or 'polygons', which cannot leave out holes: they are filled
    ) -> list[Annotation]:
        "As of every learner, with the masks of the objects in pixels of the files; an object may have an empty one"
        res = super().annotate(items, thresh, bs, tile, tta, postprocess)
        if masks == 'rle': return res
        return [replace(a, masks=[mask_polygons(decode_mask(m, a.size), 'fill') for m in a.masks]) for a in res]

    def predict(self, item, rm_type_tfms=0, with_input=False):
        """The `Annotation`; the detections that count, (k, 6) in pixels of the network's input, and their masks; and
        all, (max_dets, 6) and (max_dets, m, m)"""
        return super().predict(item, rm_type_tfms, with_input)

    def coco_scores(self, truth, said, per_class:bool=False):
        "COCO's figures by the overlap of boxes, as of `coco_ap`, then by that of masks, '_segm' behind their names"
        boxes,masks = (coco_ap(truth, said, self.dls.vocab[1:], o, per_class=per_class) for o in ('bbox', 'segm'))
        if not per_class: return {**boxes, **{f'{k}_segm': v for k,v in masks.items()}}
        return pd.concat([boxes, masks.drop(columns=['label', 'n']).add_suffix('_segm')], axis=1)
