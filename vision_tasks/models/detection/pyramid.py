"Feature pyramids on any encoder (Lin et al., 2016, arXiv:1612.03144), and their anchors"
from __future__ import annotations
import math
from collections import OrderedDict
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from timm.layers import freeze_batch_norm_2d
from ...arguments import several, whole
from ..encoders import create_encoder
from ..kinds import STRIDE, checked_net
from ..layers import scaled

__all__ = ['default_anchors']

def freeze_norms(body):
    "Fix the statistics and weights of all BatchNorm layers of `body`, in place"
    freeze_batch_norm_2d(body)

def anchor_generator(anchors, levels, n=None) -> AnchorGenerator:
    "Generator for a net of `levels` maps with `n` anchors per cell. Raises `ValueError` where `anchors` do not fit"
    sizes,ratios = anchors
    ns = {len(s)*len(ratios) for s in sizes}
    if len(sizes) != levels or len(ns) > 1 or n not in (None, *ns):
        got = ' and '.join(map(str, sorted(ns)))
        raise ValueError(f"anchors: expected (sizes by level, ratios) for {levels} levels with {n or 'equally many'} "
                         f"anchors on each, got {len(sizes)} levels of {got}; see `fit_anchors`")
    return AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),)*levels)

class PyramidBackbone(nn.Module):
    "A feature pyramid on the maps of an encoder at `strides`, all with `c` channels"
    def __init__(self, body, strides, c, extra):
        super().__init__()
        self.body,self.strides,self.out_channels = body,tuple(strides),c
        # a stride that the encoder does not have is taken from its nearest map
        self.taps = [min(range(len(body.strides)), key=lambda i: abs(math.log2(body.strides[i]/s))) for s in strides]
        self.fpn  = FeaturePyramidNetwork([body.channels[i] for i in self.taps], c, extra)

    def forward(self, x:Tensor) -> dict[str,Tensor]:
        maps,(h,w) = self.body(x),x.shape[-2:]     # multiples of 32, by the transform's padding
        maps = [(maps[i], (h//s, w//s)) for i,s in zip(self.taps, self.strides)]
        return self.fpn(OrderedDict((str(i), m if m.shape[-2:] == hw else F.interpolate(m, hw))
                                    for i,(m,hw) in enumerate(maps)))

@checked_net(sizes=whole(1, 100), strides=several(STRIDE, "the strides of the maps, a list of whole numbers", least=1))
def default_anchors(
    strides:tuple,       # of the net's maps, in pixels
    size:int|tuple=512,  # size of the images in pixels, as in the DataLoaders: the shorter side, or (w, h)
    sizes:int=1,         # sizes per level; 3 for sizes between the levels too, as in RetinaNet
) -> tuple[tuple,tuple]: # sizes by level in pixels, ratios, for `anchors=`
    """Anchors like torchvision's for 800 pixels: the smallest are 1/25 of the image, and sizes double from level to
    level. They are at least twice the first stride, because too few smaller ones would match an object"""
    least = max((size if isinstance(size, int) else min(size))/25, 2*strides[0])
    return tuple(tuple(least*s/strides[0]*2**(k/sizes) for k in range(sizes)) for s in strides),(.5, 1., 2.)

def detector_encoder(encoder, pretrained, n_in, stride=None) -> tuple[nn.Module,dict]:
    "The encoder, as for `create_encoder`, and the statistics with which torchvision's nets normalize for it"
    enc = create_encoder(encoder, pretrained == 'encoder' or pretrained, n_in, stride=stride)
    if enc.input_size:
        raise ValueError(f"{enc.name} takes images of {enc.input_size[0]} x {enc.input_size[1]} pixels only, but a "
                         "detector pads to multiples of 32; choose another encoder")
    return enc,{k: o if n_in == 3 else [sum(o)/3]*n_in for k,o in dict(image_mean=enc.mean, image_std=enc.std).items()}

def pyramid(encoder, pretrained, n_in, width, strides, more) -> tuple[PyramidBackbone,list,dict]:
    "The backbone with `more` levels than `strides`, the strides of all levels, and the statistics of its input"
    if not strides or any(s not in (1, 2, 4, 8, 16, 32) for s in strides) or sorted({*strides}) != [*strides]:
        raise ValueError(f"strides: expected powers of 2 up to 32 in rising order, as (8, 16, 32), got {strides}")
    enc,stats = detector_encoder(encoder, pretrained, n_in)
    if pretrained: freeze_norms(enc)
    c = 32*max(round(scaled(256, width)/32), 2)     # GroupNorm: 32 groups of at least two channels
    body = PyramidBackbone(enc, strides, c, LastLevelP6P7(c, c) if more == 2 else LastLevelMaxPool())
    return body,[*strides, *(strides[-1]*2**(i+1) for i in range(more))],stats
