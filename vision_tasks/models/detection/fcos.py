"FCOS on any encoder (Tian et al., 2019, arXiv:1904.01355)"
from __future__ import annotations
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from .pyramid import pyramid
from .recipes import RECIPES
from .torchvision import TorchvisionDetector, check_kwargs, min_score_of
from ..kinds import checked_net
from ..registry import register

__all__ = ['fcos']

@register('detection', 'fcos', kw=dict(encoder='test_resnet', width=.25), n_params=32_161_370,
          recipe=RECIPES['fcos'])
@checked_net()
def fcos(
    n_out:int,                  # classes without background
    n_in:int=3,                 # channels of the images
    pretrained=False,           # weights of the encoder, whose BatchNorm is then fixed: True (ImageNet), or the path of
                                # a local state dict
    encoder='resnet50',         # as for `create_encoder`
    width:float=1.,             # factor of the channels; 1 = 256 in pyramid and heads (in steps of 32)
    strides:tuple=(8, 16, 32),  # of the encoder's maps in the pyramid, which adds two more levels; a first stride of 4
                                # for small objects
    min_score:float=None,       # detections with a lower score are dropped; None (default): `MIN_SCORE`, 0.01
    max_dets:int=100,           # detections per image
    resize:bool=False,          # True: the net resizes images to 800 pixels, or to `min_size` and `max_size`
    **kwargs,                   # arguments of torchvision's `FCOS`
) -> TorchvisionDetector:
    "FCOS, which needs no anchors, on any encoder; with 'resnet50' the same as fcos_resnet50_fpn"
    body,levels,stats = pyramid(encoder, pretrained, n_in, width, strides, 2)
    cells = AnchorGenerator(tuple((s,) for s in levels), ((1.,),)*len(levels))
    check_kwargs(kwargs, FCOS)
    net = FCOS(body, n_out+1, anchor_generator=cells, **{**stats, **kwargs})
    return TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)
