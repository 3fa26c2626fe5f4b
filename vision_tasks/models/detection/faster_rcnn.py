"""Faster R-CNN on a single map, VGG16's conv5_3 as in the paper (Ren et al., 2015, arXiv:1506.01497): a small net looks
over the map on which Fast R-CNN stands, and proposes its regions. torchvision's parts, with the released numbers of
joint training; what differs:
- Anchors that reach out of the picture learn too, and regions of less than 16 pixels count: pictures may be small.
- Whether there is an object is one logit of an anchor, not two.
- 2000 anchors go into NMS when training, not 12 000, which would take longer than a light net's forward and backward.
- Smooth L1 turns straight at 1/9 for the second stage too, as torchvision has it; the paper's at 1."""
from __future__ import annotations
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from .fast_rcnn import RoICells, map_and_head, predictor
from .pyramid import anchor_generator, default_anchors, pyramid
from .torchvision import TorchvisionDetector, check_kwargs, min_score_of
from ..kinds import checked_net
from ..layers import scaled
from ..registry import register

__all__ = ['vgg16_anchors', 'faster_rcnn_vgg16', 'faster_rcnn']

RELEASED = dict(rpn_pre_nms_top_n_test=6000, rpn_post_nms_top_n_test=300,
                box_batch_size_per_image=128, box_nms_thresh=.3)   # the others are torchvision's own

def vgg16_anchors(
    size:int|tuple=600,  # of the pictures in pixels: the shorter side, or (w, h)
    stride:int=16,       # of the map
) -> tuple[tuple,tuple]: # sizes of the only level in pixels, ratios: what `anchors=` takes
    """The paper's 9 anchors, of 128, 256 and 512 pixels for pictures of 600, and in proportion for others. The smallest
    are a cell of the map at least, for between smaller ones objects fall through"""
    least = max((size if isinstance(size, int) else min(size))*128/600, stride)
    return ((least, 2*least, 4*least),),(.5, 1., 2.)

@register('detection', kw=dict(encoder='test_resnet', width=.25, size=64, stride=8, ps=.1), n_params=137_073_622)
@checked_net()
def faster_rcnn_vgg16(
    n_out:int,
    n_in:int=3,
    width:float=1.,            # 1 = 64 to 512 channels in VGG16, 4096 in fc6 and fc7; 1024 with another `encoder`
    pretrained=False,          # True: torchvision's VGG16, its classifier's layers as fc6 and fc7, or the weights of
                               # `encoder`, whose BatchNorm is then fixed; or the path of a local state dict of either
    encoder=None,              # None = VGG16, or what `create_encoder` takes
    size:int|tuple=600,        # of the pictures in pixels, shorter side or (w, h), for the anchors
    anchors:tuple=None,        # sizes of one level, ratios (`fit_anchors(..., levels=1, sizes=3)`); None: the paper's,
                               # in proportion to `size`
    pool:str='pool',           # the paper's RoIPool, or 'align'
    stride:int=16,             # of the map of `encoder`; 32: its last; 8 for small pictures
    ps:float=.5,               # dropout after fc6 and fc7
    min_score:float=None,      # detections that score less are dropped; None: `MIN_SCORE`, .01
    max_dets:int=100,          # a picture
    resize:bool=False,         # to 600 pixels (the longer side to 1000), or what `min_size` and `max_size` say
    **kwargs,                  # of torchvision's `FasterRCNN`
) -> TorchvisionDetector:
    "The Faster R-CNN of the paper; with two logits an anchor it would have the released net's 137,078,239 parameters"
    body,head,stats = map_and_head(encoder, pretrained, n_in, width, stride, ps)
    check_kwargs(kwargs, FasterRCNN)
    net = FasterRCNN(
        body, rpn_anchor_generator=anchor_generator(anchors or vgg16_anchors(size, body.stride), 1), box_head=head,
        box_predictor=predictor(head[-3].out_features, n_out),
        **{**dict(min_size=600, max_size=1000), **stats, **RELEASED, **kwargs})
    net.roi_heads.box_roi_pool = RoICells(pool, body.stride)      # the constructor takes none but its own
    return TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)

@register('detection', 'faster_rcnn', kw=dict(encoder='test_resnet', width=.25, size=64), n_params=41_449_656)
@checked_net()
def faster_rcnn(
    n_out:int,
    n_in:int=3,
    pretrained=False,           # True, or the path of a local state dict: of the encoder, whose BatchNorm is then fixed
    encoder='resnet50',         # what `create_encoder` takes
    size:int|tuple=512,         # of the pictures in pixels, shorter side or (w, h), for `default_anchors`
    anchors:tuple=None,         # sizes by level, ratios (`fit_anchors`); None: `default_anchors`
    width:float=1.,             # 1 = 256 channels in the pyramid (in steps of 32), 1024 in the head
    strides:tuple=(4, 8, 16, 32),  # of the encoder's maps in the pyramid; one level more follows
    min_score:float=None,       # detections that score less are dropped; None: `MIN_SCORE`, .01
    max_dets:int=100,           # a picture
    resize:bool=False,          # to 800 pixels, or what `min_size` and `max_size` say
    **kwargs,                   # of torchvision's `FasterRCNN`
) -> TorchvisionDetector:
    "Faster R-CNN with a feature pyramid on any encoder; with 'resnet50' fasterrcnn_resnet50_fpn, but for the anchors"
    body,levels,stats = pyramid(encoder, pretrained, n_in, width, strides, 1)
    hidden = scaled(1024, width)
    check_kwargs(kwargs, FasterRCNN)
    net = FasterRCNN(
        body, rpn_anchor_generator=anchor_generator(anchors or default_anchors(levels, size), len(levels)),
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(len(strides))], 7, 2),
        box_head=TwoMLPHead(body.out_channels*49, hidden), box_predictor=FastRCNNPredictor(hidden, n_out+1),
        **{**stats, **kwargs})
    return TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)
