"""Fully convolutional networks: VGG16 as a convolution over the whole image, whose coarse scores are upsampled, alone
(32s) or together with those of earlier maps (16s, 8s) (Long, Shelhamer, Darrell, 2015, arXiv:1411.4038). Padding and
offsets are those of the released nets, where the upsampling kernels do not learn"""
from __future__ import annotations
import torch.nn.functional as F
from torch import Tensor, nn
from ...arguments import choice
from ..kinds import checked_net
from ..layers import BilinearUp, conv_relu, init_he, scaled
from ..registry import register
from ..vgg import VGG16, VGG16_RECIPE

__all__ = ['FCN', 'fcn32s', 'fcn16s', 'fcn8s']

def crop(x, at, like):
    "The part of `x` (b, c, h, w) from pixel `at` on, with the height and width of `like`"
    h,w = like.shape[-2:]
    return x[..., at:at+h, at:at+w]

class FCN(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits; any height and width"
    @checked_net(stride=choice(8, 16, 32))
    def __init__(self,
        n_out,      # classes, background included
        n_in=3,     # channels of the images
        width=1.,   # factor of the channels
        stride=32,  # of the finest map with scores: 32, 16 or 8
        ps=.5,      # dropout after fc6 and fc7
    ):
        super().__init__()
        self.stride = stride
        c = scaled(4096, width)
        # padding of 100, so that there are 7x7 cells for fc6 even in the smallest image
        self.encoder = VGG16(n_in, width, pad=100)
        *_,c3,c4,c5 = self.encoder.channels
        self.encoder.top = nn.Sequential(*conv_relu(c5, c, 7), nn.Dropout(ps), *conv_relu(c, c, 1), nn.Dropout(ps))
        self.score = nn.Conv2d(c, n_out, 1)
        if stride <= 16: self.score_pool4,self.up2 = nn.Conv2d(c4, n_out, 1),BilinearUp(2)
        if stride == 8:  self.score_pool3 = nn.Conv2d(c3, n_out, 1)
        self.up = BilinearUp(stride)
        init_he(self)
        for k,m in self.named_children():
            if k.startswith('score'): nn.init.zeros_(m.weight)

    def forward(self, x:Tensor) -> Tensor:
        y,maps = x,[]
        for stage in self.encoder.stages:
            y = F.max_pool2d(stage(y), 2, ceil_mode=True)
            maps.append(y)
        y = self.score(self.encoder.top(y))
        if self.stride <= 16:
            y = self.up2(y)
            y = y + crop(self.score_pool4(maps[3]), 5, y)
        if self.stride == 8:
            y = self.up2(y)
            y = y + crop(self.score_pool3(maps[2]), 9, y)
        return crop(self.up(y), {32: 19, 16: 27, 8: 31}[self.stride], x)

def start_from(net:nn.Module, other, new:str) -> nn.Module:
    """Load into `net`, in place, the weights of `other`, a trained net of the same class or its learner; only
    parameters whose names start with `new` may be missing there. Raises `ValueError` for other nets"""
    other = getattr(other, 'model', other)
    if not isinstance(other, type(net)):
        raise ValueError(f"start: expected a {type(net).__name__} or its learner, got {type(other).__name__}")
    own,sd = net.state_dict(),other.state_dict()
    bad = [k for k,v in own.items() if (k in sd and sd[k].shape != v.shape) or (k not in sd and not k.startswith(new))]
    bad += [k for k in sd if k not in own]
    if bad: raise ValueError(f"{', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''} of `start` do not fit: expected a "
                             "coarser net of the same n_out, n_in and width")
    net.load_state_dict(sd, strict=False)
    return net

def _fcn(stride, n_out, n_in, width, pretrained, ps, start=None) -> FCN:
    net = FCN(n_out, n_in, width, stride, ps)
    if start is None: net.encoder.load(pretrained, fc=True)
    else:             start_from(net, start, 'score_pool')
    return net

_same = dict(kw=dict(width=.05), size=(33, 45), recipe=VGG16_RECIPE)

@register('segmentation', n_params=134_346_581, **_same)
@checked_net()
def fcn32s(
    n_out:int,           # classes, background included
    n_in:int=3,          # channels of the images
    width:float=1.,      # factor of the channels; 1 = 64 to 512 in VGG16, 4096 in fc6 and fc7
    pretrained=False,    # True: torchvision's VGG16 with its classifier's layers as fc6 and fc7; or the path of its
                         # state dict
    ps:float=.5,         # dropout after fc6 and fc7
) -> FCN:
    "FCN-32s: the scores of fc7, upsampled by 32"
    return _fcn(32, n_out, n_in, width, pretrained, ps)

@register('segmentation', n_params=134_357_354, **_same)
@checked_net()
def fcn16s(
    n_out:int,           # classes, background included
    n_in:int=3,          # channels of the images
    width:float=1.,      # factor of the channels, as for `fcn32s`
    pretrained=False,    # weights of VGG16, as for `fcn32s`
    ps:float=.5,         # dropout after fc6 and fc7
    start=None,          # a trained `fcn32s`, or its learner, with all weights except those of the new scores, which
                         # start at 0; `pretrained` is then ignored. None (default): none
) -> FCN:
    "FCN-16s: scores of fc7 and pool4. Raises `ValueError` where `start` does not fit"
    return _fcn(16, n_out, n_in, width, pretrained, ps, start)

@register('segmentation', n_params=134_362_751, **_same)
@checked_net()
def fcn8s(
    n_out:int,           # classes, background included
    n_in:int=3,          # channels of the images
    width:float=1.,      # factor of the channels, as for `fcn32s`
    pretrained=False,    # weights of VGG16, as for `fcn32s`
    ps:float=.5,         # dropout after fc6 and fc7
    start=None,          # a trained `fcn16s` or `fcn32s`, or its learner, as for `fcn16s`
) -> FCN:
    "FCN-8s: scores of fc7, pool4 and pool3. Raises `ValueError` where `start` does not fit"
    return _fcn(8, n_out, n_in, width, pretrained, ps, start)
