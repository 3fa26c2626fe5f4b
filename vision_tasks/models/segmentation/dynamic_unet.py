"""A U-Net on any encoder, with fastai's decoder (`DynamicUnet`: PixelShuffle with ICNR). fastai's class itself wants a
`nn.Sequential` and the size of the pictures, and hooks what it needs; here the encoder gives its maps, of any size"""
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
    "fastai's block, which is given the encoder's map instead of hooking it"
    def forward(self, x, skip):
        x = to_size(self.shuf(x), skip)
        return self.conv2(self.conv1(self.relu(torch.cat([x, self.bn(skip)], 1))))

def to_size(x, like):
    "`x` with the height and width of `like`"
    return x if x.shape[-2:] == like.shape[-2:] else F.interpolate(x, like.shape[-2:], mode='nearest')

class EncoderUnet(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits, of any height and width that `encoder` takes"
    @checked_net(encoder=ENCODER, blur=FLAG, blur_final=FLAG, self_attention=FLAG, last_cross=FLAG, bottle=FLAG,
                 act_cls=Kind("an activation, such as `nn.ReLU`", callable), init=FUNCTION,
                 norm_type=instance(NormType, what="a `NormType` of fastai"))
    def __init__(self,
        encoder:Encoder,
        n_out:int,
        blur:bool=False,             # average over 2x2 pixels after each PixelShuffle, against checkerboards
        blur_final:bool=True,        # with `blur`, after the last block's too
        self_attention:bool=False,   # in the last block but two
        last_cross:bool=True,        # the picture itself joins at the end
        bottle:bool=False,           # half the channels in the block after that
        act_cls=defaults.activation,
        init=nn.init.kaiming_normal_,
        norm_type=None,              # a `NormType`; None: convolutions with a bias and no norm
        **kwargs,                    # of all `ConvLayer`s
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
        # fastai shuffles once here and resizes what is missing
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
    n_out:int,
    n_in:int=3,
    pretrained=False,       # True, or the path of a local state dict: of the encoder
    encoder='resnet34',     # what `create_encoder` takes
    **kwargs,               # of `EncoderUnet`, as fastai's `DynamicUnet` takes them
) -> EncoderUnet:
    "fastai's `DynamicUnet` on any encoder"
    return EncoderUnet(create_encoder(encoder, pretrained, n_in), n_out, **kwargs)
