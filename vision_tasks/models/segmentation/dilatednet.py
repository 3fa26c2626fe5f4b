"""DilatedNet: VGG16 with dilation instead of its last two poolings, and a context module with a growing receptive field
at one resolution (Yu & Koltun, 2015, arXiv:1511.07122). Zero padding keeps the size; the paper mirrors the image at its
border"""
from __future__ import annotations
import torch.nn.functional as F
from torch import Tensor, nn
from ..kinds import CONTEXT, checked_net
from ..layers import BilinearUp, ContextModule, conv_relu, init_he, scaled
from ..registry import register
from ..vgg import VGG16, VGG16_RECIPE
from .fcn import start_from

__all__ = ['DilatedNet', 'dilatednet']

class DilatedNet(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits; any height and width"
    @checked_net(context=CONTEXT)
    def __init__(self,
        n_out,      # classes, background included
        n_in=3,     # channels of the images
        width=1.,   # factor of the channels
        context=None,   # kind of `ContextModule`, 'basic' or 'large'; None (default): none
        ps=.5,      # dropout after fc6 and fc7
    ):
        super().__init__()
        c = scaled(4096, width)
        self.encoder = VGG16(n_in, width, dilation=2)
        self.encoder.top = nn.Sequential(
            *conv_relu(self.encoder.channels[-1], c, 7, padding=12, dilation=4), nn.Dropout(ps),
            *conv_relu(c, c, 1), nn.Dropout(ps))
        self.score = nn.Conv2d(c, n_out, 1)
        init_he(self)
        self.context = None if context is None else ContextModule(n_out, context)   # initialized as the identity
        self.up = BilinearUp(8, padding=4)

    def forward(self, x:Tensor) -> Tensor:
        h,w = x.shape[-2:]
        y = F.pad(x, (0, -w%8, 0, -h%8))
        for i,stage in enumerate(self.encoder.stages):
            y = stage(y)
            if i < 3: y = F.max_pool2d(y, 2)
        y = self.score(self.encoder.top(y))
        if self.context is not None: y = self.context(y)
        return self.up(y)[..., :h, :w]

@register('segmentation', kw=dict(width=.05, context='basic'), n_params=134_346_581, recipe=VGG16_RECIPE)
@checked_net(context=CONTEXT)
def dilatednet(
    n_out:int,           # classes, background included
    n_in:int=3,          # channels of the images
    width:float=1.,      # factor of the channels; 1 = 64 to 512 in VGG16, 4096 in fc6 and fc7
    pretrained=False,    # True: torchvision's VGG16 with its classifier's layers as fc6 and fc7; or the path of its
                         # state dict
    context:str=None,    # kind of `ContextModule`, 'basic' or 'large'; None (default): the front end alone
    start=None,          # a trained front end, or its learner, to which the context is added; `pretrained` is then
                         # ignored. None (default): none
    ps:float=.5,         # dropout after fc6 and fc7
) -> DilatedNet:
    "The DilatedNet of the paper. Raises `ValueError` where `start` does not fit"
    net = DilatedNet(n_out, n_in, width, context, ps)
    if start is None: net.encoder.load(pretrained, fc=True)
    else:             start_from(net, start, 'context.')
    return net
