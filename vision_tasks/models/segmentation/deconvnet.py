"""DeconvNet: VGG16 down to a vector for 224 pixels, and its mirror image up, with unpooling and transposed convolutions
(Noh et al., 2015, arXiv:1505.04366). The net sees the whole image; the paper merges the outputs of proposals"""
from __future__ import annotations
from torch import Tensor, nn
from ..kinds import checked_net
from ..layers import check_norm, conv_relu, init_he, scaled
from ..registry import register
from ..vgg import VGG16
from .segnet import decode, encode, mirrored

__all__ = ['DeconvNet', 'deconvnet']

class DeconvNet(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits, for heights and widths of 193 or more; smaller ones raise `ValueError`"
    @checked_net()
    def __init__(self,
        n_out,      # classes, background included
        n_in=3,     # channels of the images
        width=1.,   # factor of the channels
    ):
        super().__init__()
        c = scaled(4096, width)
        self.encoder = VGG16(n_in, width, bn=True)
        c1,*_,c5 = self.encoder.channels
        self.encoder.top = nn.Sequential(*conv_relu(c5, c, 7, bn=True), *conv_relu(c, c, 1, bn=True))
        self.expand  = nn.Sequential(*conv_relu(c, c5, 7, bn=True, conv=nn.ConvTranspose2d))
        self.decoder = mirrored(self.encoder, nn.ConvTranspose2d)
        self.score   = nn.Conv2d(c1, n_out, 1)
        init_he(self)

    def forward(self, x:Tensor) -> Tensor:
        least = [-(-n//32)-6 for n in x.shape[-2:]]         # size of fc6's map, whose kernel has 7x7 cells
        if min(least) < 1:
            raise ValueError("DeconvNet takes heights and widths of 193 or more, because fc6 needs 7 x 7 cells of 32 "
                             f"pixels, got {x.shape[-2]} x {x.shape[-1]}; use 193 or more, such as size=224")
        check_norm(self, x, least)
        y,switches = encode(self.encoder, x)
        return self.score(decode(self.decoder, self.expand(self.encoder.top(y)), switches))

@register('segmentation', size=(193, 197), min_bs=2, kw=dict(width=.03), n_params=251_805_653,
          refuses={(192, 224): '193 or more, .*got 192 x 224;', (224, 100): 'got 224 x 100;'})
@checked_net()
def deconvnet(
    n_out:int,           # classes, background included
    n_in:int=3,          # channels of the images
    width:float=1.,      # factor of the channels; 1 = 64 to 512, 4096 in fc6 and fc7
    pretrained=False,    # True: torchvision's vgg16_bn with its classifier's layers as fc6 and fc7; or the path of its
                         # state dict
) -> DeconvNet:
    "The DeconvNet of the paper"
    net = DeconvNet(n_out, n_in, width)
    net.encoder.load(pretrained, fc=True)
    return net
