"Mask R-CNN on any encoder (He et al., 2017, arXiv:1703.06870)"
from __future__ import annotations
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, roi_pool
from torchvision.ops.poolers import _convert_to_roi_format, _setup_scales
from .pyramid import anchor_generator, default_anchors, pyramid
from .recipes import RECIPES
from .regions import region_counts
from .torchvision import TorchvisionDetector, check_kwargs, min_score_of
from ..kinds import checked_net
from ..layers import scaled
from ..registry import register

__all__ = ['MultiScaleRoIPool', 'mask_rcnn']

class MultiScaleRoIPool(MultiScaleRoIAlign):
    """RoIPool (Girshick, 2015, arXiv:1504.08083) on the level of the pyramid that `MultiScaleRoIAlign` would choose:
    box and bins are rounded to cells of the map, and each bin is their maximum. `sampling_ratio` is unused"""
    def forward(self,
        x:dict[str,Tensor],                  # maps (b, c, h, w) by name
        boxes:list[Tensor],                  # per image (n, 4) pixels
        image_shapes:list[tuple[int,int]],   # per image (h, w) pixels
    ) -> Tensor:                             # (all n, c, *output_size)
        "Pooled maps of all boxes"
        maps = [x[k] for k in self.featmap_names]
        if self.scales is None:
            self.scales,self.map_levels = _setup_scales(maps, image_shapes, self.canonical_scale, self.canonical_level)
        rois,levels = _convert_to_roi_format(boxes),self.map_levels(boxes)
        out = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for i,(m,scale) in enumerate(zip(maps, self.scales)):
            on = torch.where(levels == i)[0]
            out[on] = roi_pool(m, rois[on], self.output_size, scale)
        return out

_POOLS = dict(align=MultiScaleRoIAlign, pool=MultiScaleRoIPool)

@register('instance', 'mask_rcnn', kw=dict(encoder='test_resnet', width=.25, size=64), n_params=44_077_773,
          recipe=RECIPES['maskrcnn'])
@checked_net()
def mask_rcnn(
    n_out:int,                  # classes without background
    n_in:int=3,                 # channels of the images
    pretrained=False,           # weights of the encoder, whose BatchNorm is then fixed: True (ImageNet), or the path of
                                # a local state dict
    encoder='resnet50',         # as for `create_encoder`
    size:int|tuple=512,         # size of the images in pixels, the shorter side or (w, h), for `default_anchors` and
                                # the numbers of regions: torchvision's at 800, fewer in smaller images
    anchors:tuple=None,         # sizes by level, ratios (`fit_anchors`); None (default): `default_anchors`
    width:float=1.,             # factor of the channels; 1 = 256 in the pyramid (in steps of 32) and the mask head,
                                # 1024 in the box head
    strides:tuple=(4, 8, 16, 32),  # of the encoder's maps in the pyramid, which adds one more level
    pool:str='align',           # pooling of boxes in both heads: 'align' (RoIAlign), or 'pool' (RoIPool), which rounds
    min_score:float=None,       # detections with a lower score are dropped; None (default): `MIN_SCORE`, 0.01
    max_dets:int=100,           # detections per image
    resize:bool=False,          # True: the net resizes images to 800 pixels, or to `min_size` and `max_size`
    **kwargs,                   # arguments of torchvision's `MaskRCNN`
) -> TorchvisionDetector:
    """Mask R-CNN with a feature pyramid on any encoder; with 'resnet50' the same as maskrcnn_resnet50_fpn, except for
    the anchors and the numbers of regions"""
    body,levels,stats = pyramid(encoder, pretrained, n_in, width, strides, 1)
    hidden,wide,c,maps = scaled(1024, width),scaled(256, width),body.out_channels,[str(i) for i in range(len(strides))]
    check_kwargs(kwargs, MaskRCNN)
    net = MaskRCNN(
        body, rpn_anchor_generator=anchor_generator(anchors or default_anchors(levels, size), len(levels)),
        box_roi_pool=_POOLS[pool](maps, 7, 2), mask_roi_pool=_POOLS[pool](maps, 14, 2),
        box_head=TwoMLPHead(c*49, hidden), box_predictor=FastRCNNPredictor(hidden, n_out+1),
        mask_head=MaskRCNNHeads(c, (wide,)*4, 1), mask_predictor=MaskRCNNPredictor(wide, wide, n_out+1),
        **{**stats, **region_counts(size), **kwargs})
    return TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)
