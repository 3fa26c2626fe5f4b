"""Fully convolutional networks: VGG16 as one convolution over the whole picture, and its coarse scores enlarged, alone
(32s) or with those of earlier maps (16s, 8s) (Long, Shelhamer, Darrell, 2015, arXiv:1411.4038). Padding and offsets are
those of the released nets, where the kernels that enlarge do not learn"""
from __future__ import annotations
import torch.nn.functional as F
from torch import Tensor, nn
from ...arguments import choice
from ..kinds import checked_net
from ..layers import BilinearUp, conv_relu, init_he, scaled
from ..registry import register
from ..vgg import VGG16

__all__ = ['FCN', 'fcn32s', 'fcn16s', 'fcn8s']

def crop(x, at, like):
    "(b, c, h, w) of `x` from `at` pixels on, with the height and width of `like`"
    h,w = like.shape[-2:]
    return x[..., at:at+h, at:at+w]

class FCN(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits, of any height and width"
    @checked_net(stride=choice(8, 16, 32))
    def __init__(self, n_out, n_in=3, width=1., stride=32, ps=.5):
        super().__init__()
        self.stride = stride
        c = scaled(4096, width)
        # a padding of 100, so that fc6 finds 7x7 cells on the smallest picture
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
    """Let `net` begin with the weights of `other`, a trained net of the same family or its learner; only parameters
    whose names begin with `new` may be missing there. In place"""
    other = getattr(other, 'model', other)
    if not isinstance(other, type(net)):
        raise ValueError(f"start is a {type(net).__name__} or its learner, not {type(other).__name__}")
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

_same = dict(kw=dict(width=.05), size=(33, 45))

@register('segmentation', n_params=134_346_581, **_same)
@checked_net()
def fcn32s(
    n_out:int,
    n_in:int=3,
    width:float=1.,      # 1 = 64 to 512 channels in VGG16, 4096 in fc6 and fc7
    pretrained=False,    # True: torchvision's VGG16, its classifier's layers as fc6 and fc7; or the path of its weights
    ps:float=.5,         # dropout after fc6 and fc7
) -> FCN:
    "FCN-32s: the scores of fc7 alone, 32 times enlarged"
    return _fcn(32, n_out, n_in, width, pretrained, ps)

@register('segmentation', n_params=134_357_354, **_same)
@checked_net()
def fcn16s(n_out:int, n_in:int=3, width:float=1., pretrained=False, ps:float=.5,
    start=None,          # a trained `fcn32s` or its learner, which gives all weights but those of the new scores, which
                         # are 0; `pretrained` is not looked at then
) -> FCN:
    "FCN-16s: scores of fc7 and pool4; otherwise as `fcn32s`"
    return _fcn(16, n_out, n_in, width, pretrained, ps, start)

@register('segmentation', n_params=134_362_751, **_same)
@checked_net()
def fcn8s(n_out:int, n_in:int=3, width:float=1., pretrained=False, ps:float=.5,
    start=None,          # a trained `fcn16s` (or `fcn32s`) or its learner
) -> FCN:
    "FCN-8s: scores of fc7, pool4 and pool3; otherwise as `fcn16s`"
    return _fcn(8, n_out, n_in, width, pretrained, ps, start)
