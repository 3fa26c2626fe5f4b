"""DeconvNet: VGG16 down to a vector for 224 pixels, and its mirror image back, by unpooling and transposed convolution
(Noh et al., 2015, arXiv:1505.04366). The whole picture goes through at once, where the paper adds up proposals"""
from __future__ import annotations
from torch import Tensor, nn
from ..kinds import checked_net
from ..layers import check_norm, conv_relu, init_he, scaled
from ..registry import register
from ..vgg import VGG16
from .segnet import decode, encode, mirrored

__all__ = ['DeconvNet', 'deconvnet']

class DeconvNet(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits, of heights and widths of 193 or more"
    @checked_net()
    def __init__(self, n_out, n_in=3, width=1.):
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
        least = [-(-n//32)-6 for n in x.shape[-2:]]         # of fc6, which takes 7x7 cells
        if min(least) < 1:
            raise ValueError(f"DeconvNet takes heights and widths of 193 or more, for fc6 looks at 7 x 7 cells of 32 "
                             f"pixels; {x.shape[-2]} x {x.shape[-1]} came: take 193 or more, such as size=224")
        check_norm(self, x, least)
        y,switches = encode(self.encoder, x)
        return self.score(decode(self.decoder, self.expand(self.encoder.top(y)), switches))

@register('segmentation', size=(193, 197), min_bs=2, kw=dict(width=.03), n_params=251_805_653,
          refuses={(192, 224): '193 or more; |192 x 224 came', (224, 100): '224 x 100 came'})
@checked_net()
def deconvnet(
    n_out:int,
    n_in:int=3,
    width:float=1.,      # 1 = 64 to 512 channels, 4096 in fc6 and fc7
    pretrained=False,    # True: torchvision's vgg16_bn, its classifier's layers as fc6 and fc7; or the path of its file
) -> DeconvNet:
    "The DeconvNet of the paper"
    net = DeconvNet(n_out, n_in, width)
    net.encoder.load(pretrained, fc=True)
    return net
