"""A U-Net (Ronneberger et al., 2015, arXiv:1505.04597) for short trainings, on any encoder. It departs from the paper:
few channels, one convolution with BatchNorm per level, bilinear upsampling, and the finest level has stride 2"""
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation
from ..encoders import ENCODER, Encoder, create_encoder
from ..kinds import WIDTH, checked_net
from ..layers import scaled
from ..registry import register

__all__ = ['LightUnet', 'light_unet']

CHANNELS = 128,64,48,32   # of the levels, from the coarsest; further levels have as many as the last

def upsampled(x, like):
    "`x` with the height and width of `like`"
    return F.interpolate(x, like.shape[-2:], mode='bilinear', align_corners=False)

class LightUnet(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits; any height and width that `encoder` takes"
    @checked_net(encoder=ENCODER, width=WIDTH)
    def __init__(self,
        encoder:Encoder,   # with feature maps (`pyramid=True`)
        n_out:int,         # classes, background included
        width:float=1.,    # factor of the channels; 1 = 128, 64, 48 and 32
    ):
        super().__init__()
        skips = [c for c,s in zip(encoder.channels, encoder.strides[:-1]) if s > 1][::-1]   # finest last
        chs   = [scaled(c, width) for c in (CHANNELS + CHANNELS[-1:]*len(skips))[:len(skips)]]
        self.encoder = encoder
        self.middle  = Conv2dNormActivation(encoder.channels[-1], 2*scaled(CHANNELS[0], width), 1)
        self.blocks  = nn.ModuleList(Conv2dNormActivation(i+s, o)
                                     for i,s,o in zip([2*scaled(CHANNELS[0], width), *chs], skips, chs))
        self.score   = nn.Conv2d(chs[-1] if chs else 2*scaled(CHANNELS[0], width), n_out, 1)

    def forward(self, x:Tensor) -> Tensor:
        *maps,y = self.encoder(x)
        y = self.middle(y)
        for block in self.blocks:
            skip = maps.pop()
            y = block(torch.cat([upsampled(y, skip), skip], 1))
        return upsampled(self.score(y), x)

@register('segmentation', kw=dict(encoder='test_resnet'), n_params=22_242_325, recipe=dict(base_lr=8e-3, lr_mult=5.))
@checked_net()
def light_unet(
    n_out:int,              # classes, background included
    n_in:int=3,             # channels of the images
    width:float=1.,         # factor of the decoder's channels; 1 = 128, 64, 48 and 32
    pretrained=False,       # weights of the encoder: True (ImageNet), or the path of a local state dict
    encoder='resnet34',     # as for `create_encoder`
) -> LightUnet:
    "A U-Net with a small decoder on any encoder"
    return LightUnet(create_encoder(encoder, pretrained, n_in), n_out, width)
