"RetinaNet on any encoder (Lin et al., 2017, arXiv:1708.02002)"
from __future__ import annotations
from torchvision.models.detection import RetinaNet
from .pyramid import anchor_generator, default_anchors, pyramid
from .torchvision import TorchvisionDetector, check_kwargs, min_score_of
from ..kinds import checked_net
from ..registry import register

__all__ = ['retinanet']

@register('detection', 'retinanet', kw=dict(encoder='test_resnet', width=.25, size=64), n_params=32_615_969)
@checked_net()
def retinanet(
    n_out:int,
    n_in:int=3,
    pretrained=False,           # True, or the path of a local state dict: of the encoder, whose BatchNorm is then fixed
    encoder='resnet50',         # what `create_encoder` takes
    size:int|tuple=512,         # of the pictures in pixels, shorter side or (w, h), for `default_anchors`
    anchors:tuple=None,         # sizes by level, ratios (`fit_anchors(..., sizes=3)`); None: `default_anchors`
    width:float=1.,             # 1 = 256 channels in pyramid and heads (in steps of 32)
    strides:tuple=(8, 16, 32),  # of the encoder's maps in the pyramid; two levels more follow. 4 in front: finer
    min_score:float=None,       # detections that score less are dropped; None: `MIN_SCORE`, .01
    max_dets:int=100,           # a picture
    resize:bool=False,          # to 800 pixels, or what `min_size` and `max_size` say
    **kwargs,                   # of torchvision's `RetinaNet`
) -> TorchvisionDetector:
    "RetinaNet on any encoder; with 'resnet50' retinanet_resnet50_fpn, but for the anchors"
    body,levels,stats = pyramid(encoder, pretrained, n_in, width, strides, 2)
    gen = anchor_generator(anchors or default_anchors(levels, size, 3), len(levels))
    check_kwargs(kwargs, RetinaNet)
    net = RetinaNet(body, n_out+1, anchor_generator=gen, **{**stats, **kwargs})
    return TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)
