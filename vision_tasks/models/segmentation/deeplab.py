"""DeepLab v1 with a large field of view: VGG16 whose last poolings have stride 1, with dilated ("a-trous") convolutions
after them (Chen et al., 2014, arXiv:1412.7062). Its CRF is `ops.crf.dense_crf`, for `annotate(postprocess=...)`"""
from __future__ import annotations
import torch.nn.functional as F
from torch import Tensor, nn
from ..kinds import checked_net
from ..layers import conv_relu, init_he, scaled
from ..registry import register
from ..vgg import VGG16, VGG16_RECIPE

__all__ = ['DeepLab', 'deeplab_v1']

class DeepLab(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits, upsampled from ceil(h/8) x ceil(w/8) cells; any height and width"
    strides = 2,2,2,1,1      # of the poolings
    @checked_net()
    def __init__(self,
        n_out,      # classes, background included
        n_in=3,     # channels of the images
        width=1.,   # factor of the channels
        ps=.5,      # dropout after fc6 and fc7
    ):
        super().__init__()
        c = scaled(1024, width)
        self.encoder = VGG16(n_in, width, dilation=2)
        self.fc = nn.Sequential(*conv_relu(self.encoder.channels[-1], c, 3, padding=12, dilation=12), nn.Dropout(ps),
                                *conv_relu(c, c, 1), nn.Dropout(ps))
        self.score = nn.Conv2d(c, n_out, 1)
        init_he(self)

    def forward(self, x:Tensor) -> Tensor:
        y = x
        for stage,s in zip(self.encoder.stages, self.strides): y = F.max_pool2d(stage(y), 3, s, 1)
        y = self.score(self.fc(F.avg_pool2d(y, 3, 1, 1)))
        return F.interpolate(y, x.shape[-2:], mode='bilinear', align_corners=True)

@register('segmentation', kw=dict(width=.1), n_params=20_505_429, recipe=VGG16_RECIPE)
@checked_net()
def deeplab_v1(
    n_out:int,           # classes, background included
    n_in:int=3,          # channels of the images
    width:float=1.,      # factor of the channels; 1 = 64 to 512 in VGG16, 1024 in fc6 and fc7
    pretrained=False,    # True: torchvision's VGG16 without its classifier; or the path of its state dict
    ps:float=.5,         # dropout after fc6 and fc7
) -> DeepLab:
    "DeepLab-LargeFOV of the paper"
    net = DeepLab(n_out, n_in, width, ps)
    net.encoder.load(pretrained)
    return net
