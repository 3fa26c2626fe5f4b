"SegNet: the encoder's pooling indices guide the decoder's upsampling (Badrinarayanan et al., 2015, arXiv:1511.00561)"
from __future__ import annotations
import torch.nn.functional as F
from torch import Tensor, nn
from ..kinds import checked_net
from ..layers import check_norm, conv_relu, init_he
from ..registry import register
from ..vgg import VGG16

__all__ = ['SegNet', 'segnet']

def encode(encoder:VGG16, x:Tensor) -> tuple[Tensor,list]:
    "The map after the fifth pooling, and for each pooling, the last first, (indices of the maxima, input size)"
    switches = []
    for stage in encoder.stages:
        x = stage(x)
        size = x.shape[-2:]
        x,idxs = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)   # so that odd sizes survive
        switches.insert(0, (idxs, size))
    return x,switches

def mirrored(encoder:VGG16, conv=nn.Conv2d) -> nn.ModuleList:
    "Stages that mirror those of `encoder`: as many convolutions, the last of each with the channels of the next stage"
    chs = encoder.channels
    return nn.ModuleList(nn.Sequential(*[l for j in range(n) for l in conv_relu(c, c if j < n-1 else to, bn=True,
                                                                                 conv=conv, padding=1)])
                         for c,to,n in zip(chs[::-1], [*chs[-2::-1], chs[0]], encoder.depths[::-1]))

def decode(stages:nn.ModuleList, x:Tensor, switches) -> Tensor:
    "Unpool each map to the positions of the maxima, then apply a stage, which fills the gaps"
    for stage,(idxs,size) in zip(stages, switches): x = stage(F.max_unpool2d(x, idxs, 2, output_size=size))
    return x

class SegNet(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits; any height and width"
    @checked_net()
    def __init__(self,
        n_out,      # classes, background included
        n_in=3,     # channels of the images
        width=1.,   # factor of the channels
    ):
        super().__init__()
        self.encoder = VGG16(n_in, width, bn=True)
        self.decoder = mirrored(self.encoder)
        self.decoder[-1] = self.decoder[-1][:-3]           # `score` replaces the last convolution
        self.score = nn.Conv2d(self.encoder.channels[0], n_out, 3, padding=1)
        init_he(self)

    def forward(self, x:Tensor) -> Tensor:
        check_norm(self, x, [-(-n//16) for n in x.shape[-2:]])
        return self.score(decode(self.decoder, *encode(self.encoder, x)))

@register('segmentation', kw=dict(width=.1), n_params=29_455_125)
@checked_net()
def segnet(
    n_out:int,           # classes, background included
    n_in:int=3,          # channels of the images
    width:float=1.,      # factor of the channels; 1 = 64 to 512
    pretrained=False,    # True: torchvision's vgg16_bn; or the path of its state dict
) -> SegNet:
    "The SegNet of the paper, which trains it with `class_weights(..., 'median_frequency')`"
    net = SegNet(n_out, n_in, width)
    net.encoder.load(pretrained)
    return net
