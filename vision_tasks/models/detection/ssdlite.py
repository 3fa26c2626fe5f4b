"SSDlite on any encoder (Sandler et al., 2018, arXiv:1801.04381)"
from __future__ import annotations
import math
from collections import OrderedDict
from functools import partial
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init
from .pyramid import detector_encoder
from .recipes import RECIPES
from .torchvision import TorchvisionDetector, check_kwargs, min_score_of
from ..kinds import checked_net
from ..layers import scaled
from ..registry import register

__all__ = ['ssdlite']

class SSDLiteBackbone(nn.Module):
    "Maps of an encoder from stride `first` on, and extra ones, each half as large, down to 1 x 1 for `size` pixels"
    def __init__(self, body, first, size, width, norm_layer):
        super().__init__()
        self.body,self.taps = body,[i for i,s in enumerate(body.strides) if first <= s <= 32]
        if not self.taps:
            raise ValueError(f"SSDlite needs maps at strides {first} to 32, but {body.name} has {body.strides}; choose "
                             "another encoder")
        n   = math.ceil(math.log2(max(math.ceil(size/body.strides[self.taps[-1]]), 1)))
        chs = [body.channels[self.taps[-1]], *(scaled(c, width) for c in [512, 256, 256, 128, *[128]*n][:n])]
        self.extra = nn.ModuleList([_extra_block(i, o, norm_layer) for i,o in zip(chs, chs[1:])])
        _normal_init(self.extra)
        self.out_channels = [body.channels[i] for i in self.taps] + chs[1:]

    def forward(self, x:Tensor) -> dict[str,Tensor]:
        maps = self.body(x)
        maps = [maps[i] for i in self.taps]
        for block in self.extra: maps.append(block(maps[-1]))
        return OrderedDict((str(i), m) for i,m in enumerate(maps))

@register('detection', 'ssdlite', kw=dict(encoder='test_efficientnet', width=.25, size=64), size=(61, 50), min_bs=2,
          n_params=3_937_450, recipe=RECIPES['ssdlite320'])
@checked_net()
def ssdlite(
    n_out:int,                      # classes without background
    n_in:int=3,                     # channels of the images
    pretrained=False,               # weights of the encoder: True (ImageNet), or the path of a local state dict
    encoder='mobilenet_v3_large',   # as for `create_encoder`
    size:int|tuple=320,             # size of the images in pixels, one number or (w, h): the maps go down to 1 x 1 at
                                    # this size
    stride:int=None,                # of the first map, in pixels: 16 as in the paper; None (default): 8, or 4 if there
                                    # would be fewer than five maps
    anchors:tuple=None,             # sizes by level in pixels, one each, and ratios, each with its inverse; None
                                    # (default): twice the first stride, at most 0.1 of the image, then from 0.15 to
                                    # 1.05 of it, as SSD300
    width:float=1.,                 # factor of the channels; 1 = 512, 256, 256, 128 in the extra maps
    min_score:float=None,           # detections with a lower score are dropped; None (default): `MIN_SCORE`, 0.01
    max_dets:int=100,               # detections per image
    resize:bool=False,              # True: the net resizes images to `size`
    **kwargs,                       # arguments of torchvision's `SSD`
) -> TorchvisionDetector:
    "SSDlite on any encoder; default boxes are relative to the image"
    norm  = partial(nn.BatchNorm2d, eps=.001, momentum=.03)                        # as in torchvision
    w,h   = (size, size) if isinstance(size, int) else size
    first = stride or (8 if math.log2(math.ceil(max(w, h)/8)) > 3 else 4)
    enc,stats = detector_encoder(encoder, pretrained, n_in)
    body  = SSDLiteBackbone(enc, first, max(w, h), width, norm)
    boxes = _default_boxes(anchors, len(body.out_channels), first, min(w, h))
    head  = SSDLiteHead(body.out_channels, boxes.num_anchors_per_location(), n_out+1, norm)
    check_kwargs(kwargs, SSD)
    net   = SSD(body, boxes, (w, h), n_out+1, head=head,
                **{**stats, **dict(nms_thresh=.55, topk_candidates=300), **kwargs})
    return TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)

def _default_boxes(anchors, n, first, size) -> DefaultBoxGenerator:
    if anchors is None: return DefaultBoxGenerator([[2, 3]]*n, scales=_scales(n, 2*first/size))
    sizes,ratios = anchors
    if len(sizes) != n or any(len(s) != 1 for s in sizes):
        raise ValueError(f"anchors: expected (sizes by level, ratios) with one size on each of {n} levels, got "
                         f"{[len(s) for s in sizes]}; see `fit_anchors`")
    wide = sorted({round(max(r, 1/r), 2) for r in ratios if max(r, 1/r) > 1.1})    # SSD adds squares itself
    return DefaultBoxGenerator([wide]*n, scales=[*(s/size for s, in sizes), 1.])

def _scales(n, least) -> list[float]:
    "Sizes of the boxes of `n` maps as parts of the image, and one more for the last, as in SSD300 for COCO"
    return [min(least, .1), *(.15 + .9*i/(n-1) for i in range(n))]
