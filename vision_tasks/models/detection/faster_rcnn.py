"""Faster R-CNN: a small net proposes the regions that Fast R-CNN then classifies, on the same map (Ren et al., 2015,
arXiv:1506.01497). `faster_rcnn_vgg16` has a single map, VGG16's conv5_3, as in the paper; `faster_rcnn` has a feature
pyramid. Both are made of torchvision's parts. The first has the released numbers of joint training; what differs:
- Anchors that reach outside the image learn too, and regions of less than 16 pixels are kept: images may be small.
- Objectness is one logit per anchor, not two.
- 2000 anchors enter NMS in training, not 12 000, which would take longer than a small net's forward and backward pass.
- Smooth L1 becomes linear at 1/9 in the second stage too, as in torchvision; in the paper at 1."""
from __future__ import annotations
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from .fast_rcnn import RoICells, map_and_head, predictor
from .pyramid import anchor_generator, default_anchors, pyramid
from .recipes import RECIPES
from .regions import region_counts
from .torchvision import TorchvisionDetector, check_kwargs, min_score_of
from ..kinds import checked_net
from ..layers import scaled
from ..registry import register

__all__ = ['vgg16_anchors', 'faster_rcnn_vgg16', 'faster_rcnn']

RELEASED = dict(rpn_pre_nms_top_n_test=6000, box_nms_thresh=.3)   # the others are torchvision's defaults
REGIONS  = dict(box_batch_size_per_image=128, rpn_post_nms_top_n_train=2000, rpn_post_nms_top_n_test=300)   # at 600

def vgg16_anchors(
    size:int|tuple=600,  # size of the images in pixels: the shorter side, or (w, h)
    stride:int=16,       # of the map, in pixels
) -> tuple[tuple,tuple]: # sizes of the only level in pixels, ratios, for `anchors=`
    """The paper's 9 anchors, of 128, 256 and 512 pixels for images of 600, and in proportion for others. The smallest
    are at least a cell of the map, because objects between smaller ones would match none"""
    least = max((size if isinstance(size, int) else min(size))*128/600, stride)
    return ((least, 2*least, 4*least),),(.5, 1., 2.)

@register('detection', kw=dict(encoder='test_resnet', width=.25, size=64, stride=8, ps=.1), n_params=137_073_622)
@checked_net()
def faster_rcnn_vgg16(
    n_out:int,                 # classes without background
    n_in:int=3,                # channels of the images
    width:float=1.,            # factor of the channels; 1 = 64 to 512 in VGG16, 4096 in fc6 and fc7 (1024 with an
                               # `encoder`)
    pretrained=False,          # True: torchvision's VGG16 with its classifier's layers as fc6 and fc7, or the weights
                               # of `encoder`, whose BatchNorm is then fixed; or the path of a state dict of either
    encoder=None,              # as for `create_encoder`; None (default): VGG16
    size:int|tuple=600,        # size of the images in pixels, the shorter side or (w, h), for the anchors and the
                               # numbers of regions: the paper's at 600, fewer in smaller images (`region_counts`)
    anchors:tuple=None,        # sizes of one level, ratios (`fit_anchors(..., levels=1, sizes=3)`); None (default): the
                               # paper's, in proportion to `size`
    pool:str='pool',           # pooling of regions: 'pool' (RoIPool) as in the paper, or 'align' (RoIAlign)
    stride:int=16,             # of the map of `encoder`; 32 for its last map, 8 for small images
    ps:float=.5,               # dropout after fc6 and fc7
    min_score:float=None,      # detections with a lower score are dropped; None (default): `MIN_SCORE`, 0.01
    max_dets:int=100,          # detections per image
    resize:bool=False,         # True: the net resizes images to 600 pixels (the longer side to 1000), or to `min_size`
                               # and `max_size`
    **kwargs,                  # arguments of torchvision's `FasterRCNN`
) -> TorchvisionDetector:
    "The Faster R-CNN of the paper; with two logits per anchor it would have the released net's 137,078,239 parameters"
    body,head,stats = map_and_head(encoder, pretrained, n_in, width, stride, ps)
    check_kwargs(kwargs, FasterRCNN)
    net = FasterRCNN(
        body, rpn_anchor_generator=anchor_generator(anchors or vgg16_anchors(size, body.stride), 1), box_head=head,
        box_predictor=predictor(head[-3].out_features, n_out),
        **{**dict(min_size=600, max_size=1000), **stats, **RELEASED, **region_counts(size, REGIONS, 600), **kwargs})
    net.roi_heads.box_roi_pool = RoICells(pool, body.stride)      # torchvision's constructor accepts only its own
    return TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)

@register('detection', 'faster_rcnn', kw=dict(encoder='test_resnet', width=.25, size=64), n_params=41_449_656,
          recipe=RECIPES['fasterrcnn'])
@checked_net()
def faster_rcnn(
    n_out:int,                  # classes without background
    n_in:int=3,                 # channels of the images
    pretrained=False,           # weights of the encoder, whose BatchNorm is then fixed: True (ImageNet), or the path of
                                # a local state dict
    encoder='resnet50',         # as for `create_encoder`
    size:int|tuple=512,         # size of the images in pixels, the shorter side or (w, h), for `default_anchors` and
                                # the numbers of regions: torchvision's at 800, fewer in smaller images
    anchors:tuple=None,         # sizes by level, ratios (`fit_anchors`); None (default): `default_anchors`
    width:float=1.,             # factor of the channels; 1 = 256 in the pyramid (in steps of 32), 1024 in the head
    strides:tuple=(4, 8, 16, 32),  # of the encoder's maps in the pyramid, which adds one more level
    min_score:float=None,       # detections with a lower score are dropped; None (default): `MIN_SCORE`, 0.01
    max_dets:int=100,           # detections per image
    resize:bool=False,          # True: the net resizes images to 800 pixels, or to `min_size` and `max_size`
    **kwargs,                   # arguments of torchvision's `FasterRCNN`
) -> TorchvisionDetector:
    """Faster R-CNN with a feature pyramid on any encoder; with 'resnet50' the same as fasterrcnn_resnet50_fpn, except
    for the anchors and the numbers of regions"""
    body,levels,stats = pyramid(encoder, pretrained, n_in, width, strides, 1)
    hidden = scaled(1024, width)
    check_kwargs(kwargs, FasterRCNN)
    net = FasterRCNN(
        body, rpn_anchor_generator=anchor_generator(anchors or default_anchors(levels, size), len(levels)),
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(len(strides))], 7, 2),
        box_head=TwoMLPHead(body.out_channels*49, hidden), box_predictor=FastRCNNPredictor(hidden, n_out+1),
        **{**stats, **region_counts(size), **kwargs})
    return TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)
