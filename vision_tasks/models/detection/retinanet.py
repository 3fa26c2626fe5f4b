"RetinaNet on any encoder (Lin et al., 2017, arXiv:1708.02002)"
from __future__ import annotations
from torchvision.models.detection import RetinaNet
from .pyramid import anchor_generator, default_anchors, pyramid
from .recipes import RECIPES
from .torchvision import TorchvisionDetector, check_kwargs, min_score_of
from ..kinds import checked_net
from ..registry import register

__all__ = ['retinanet']

@register('detection', 'retinanet', kw=dict(encoder='test_resnet', width=.25, size=64), n_params=32_615_969,
          recipe=RECIPES['retinanet'])
@checked_net()
def retinanet(
    n_out:int,                  # classes without background
    n_in:int=3,                 # channels of the images
    pretrained=False,           # weights of the encoder, whose BatchNorm is then fixed: True (ImageNet), or the path of
                                # a local state dict
    encoder='resnet50',         # as for `create_encoder`
    size:int|tuple=512,         # size of the images in pixels, the shorter side or (w, h), for `default_anchors`
    anchors:tuple=None,         # sizes by level, ratios (`fit_anchors(..., sizes=3)`); None (default):
                                # `default_anchors`
    width:float=1.,             # factor of the channels; 1 = 256 in pyramid and heads (in steps of 32)
    strides:tuple=(8, 16, 32),  # of the encoder's maps in the pyramid, which adds two more levels; a first stride of 4
                                # for small objects
    min_score:float=None,       # detections with a lower score are dropped; None (default): `MIN_SCORE`, 0.01
    max_dets:int=100,           # detections per image
    resize:bool=False,          # True: the net resizes images to 800 pixels, or to `min_size` and `max_size`
    **kwargs,                   # arguments of torchvision's `RetinaNet`
) -> TorchvisionDetector:
    "RetinaNet on any encoder; with 'resnet50' the same as retinanet_resnet50_fpn, except for the anchors"
    body,levels,stats = pyramid(encoder, pretrained, n_in, width, strides, 2)
    gen = anchor_generator(anchors or default_anchors(levels, size, 3), len(levels))
    check_kwargs(kwargs, RetinaNet)
    net = RetinaNet(body, n_out+1, anchor_generator=gen, **{**stats, **kwargs})
    return TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)
