"""A U-Net on any encoder, with fastai's decoder (`DynamicUnet`: PixelShuffle with ICNR). fastai's own class needs an
`nn.Sequential` and the size of the images, and hooks the maps; here the encoder returns its maps, for any size"""
from __future__ import annotations
import math
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from fastai.layers import BatchNorm, ConvLayer, NormType, PixelShuffle_ICNR, ResBlock, defaults
from fastai.torch_core import apply_init
from fastai.vision.models.unet import UnetBlock
from ...arguments import FLAG, FUNCTION, Kind, instance
from ..encoders import ENCODER, Encoder, create_encoder
from ..kinds import checked_net
from ..registry import register

__all__ = ['EncoderUnet', 'dynamic_unet']

class UpBlock(UnetBlock):
    "fastai's block, with the encoder's map as an argument instead of a hook"
    def forward(self, x, skip):
        x = to_size(self.shuf(x), skip)
        return self.conv2(self.conv1(self.relu(torch.cat([x, self.bn(skip)], 1))))

def to_size(x, like):
    "`x` with the height and width of `like`"
    return x if x.shape[-2:] == like.shape[-2:] else F.interpolate(x, like.shape[-2:], mode='nearest')

class EncoderUnet(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits; any height and width that `encoder` takes"
    @checked_net(encoder=ENCODER, blur=FLAG, blur_final=FLAG, self_attention=FLAG, last_cross=FLAG, bottle=FLAG,
                 act_cls=Kind("an activation, such as `nn.ReLU`", callable), init=FUNCTION,
                 norm_type=instance(NormType, what="a `NormType` of fastai"))
    def __init__(self,
        encoder:Encoder,             # with feature maps (`pyramid=True`)
        n_out:int,                   # classes, background included
        blur:bool=False,             # True: average over 2x2 pixels after each PixelShuffle, against checkerboards
        blur_final:bool=True,        # with `blur`, also in the last block
        self_attention:bool=False,   # True: self-attention in the third-last block
        last_cross:bool=True,        # True: concatenate the image before the last block
        bottle:bool=False,           # True: half the channels inside the last block
        act_cls=defaults.activation, # activation layer
        init=nn.init.kaiming_normal_, # initialization of the weights
        norm_type=None,              # a `NormType`; None (default): convolutions with a bias and no norm
        **kwargs,                    # arguments of all `ConvLayer`s
    ):
        super().__init__()
        both = dict(act_cls=act_cls, norm_type=norm_type)
        conv = dict(**both, **kwargs)
        c,skips = encoder.channels[-1],encoder.channels[-2::-1]
        self.encoder = encoder
        self.middle  = nn.Sequential(BatchNorm(c), nn.ReLU(), ConvLayer(c, 2*c, **conv), ConvLayer(2*c, c, **conv))
        self.blocks  = nn.ModuleList()
        for left,skip in zip(reversed(range(len(skips))), skips):
            self.blocks.append(UpBlock(c, skip, None, final_div=left > 0, blur=blur and (left > 0 or blur_final),
                                       self_attention=self_attention and left == 2, init=init, **conv))
            c = (c//2 + skip)//(1 if left else 2)
        # fastai has one shuffle here, and resizes the rest
        self.shuf  = nn.Sequential(*[PixelShuffle_ICNR(c, **both) for _ in range(round(math.log2(encoder.strides[0])))])
        self.cross = None
        if last_cross:
            c += encoder.n_in
            self.cross = ResBlock(1, c, c//2 if bottle else c, **conv)
            if bottle: c //= 2
        self.score = ConvLayer(c, n_out, ks=1, **{**conv, 'act_cls': None})
        apply_init(nn.Sequential(self.middle[2:], *([self.cross] if last_cross else [])), init)

    def forward(self, x:Tensor) -> Tensor:
        *maps,y = self.encoder(x)
        y = self.middle(y)
        for block in self.blocks: y = block(y, maps.pop())
        y = to_size(self.shuf(y), x)
        if self.cross is not None: y = self.cross(torch.cat([y, x], 1))
        return self.score(y)

@register('segmentation', 'dynamic_unet', kw=dict(encoder='test_resnet'), n_params=41_223_068)
@checked_net()
def dynamic_unet(
    n_out:int,              # classes, background included
    n_in:int=3,             # channels of the images
    pretrained=False,       # weights of the encoder: True (ImageNet), or the path of a local state dict
    encoder='resnet34',     # as for `create_encoder`
    **kwargs,               # arguments of `EncoderUnet`, those of fastai's `DynamicUnet`
) -> EncoderUnet:
    "fastai's `DynamicUnet` on any encoder"
    return EncoderUnet(create_encoder(encoder, pretrained, n_in), n_out, **kwargs)
