"""Lite R-ASPP, the head of MobileNetV3 for segmentation (Howard et al., 2019, arXiv:1905.02244), on any encoder. As in
torchvision, the pooling is over the whole map"""
from __future__ import annotations
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.lraspp import LRASPPHead
from ..encoders import ENCODER, Encoder, create_encoder
from ..kinds import CHANNELS, checked_net
from ..layers import scaled
from ..registry import register

__all__ = ['LRASPP', 'lraspp', 'dilate']

@checked_net(encoder=ENCODER)
def dilate(
    encoder:Encoder,  # changed in place
    stride:int,       # largest stride of its maps
) -> Encoder:         # the same
    """Limit the stride of `encoder`: later convolutions get a stride of 1 and are dilated, with the same weights (Yu et
    al., 2017, arXiv:1705.09914). Raises `ValueError` where other layers than convolutions of odd size downsample"""
    if encoder.strides[-1] <= stride: return encoder
    last,wide = encoder.strides[-1],{}
    def note(m, x): wide[m] = x[0].shape[-1]             # width of the input of a module
    hooks = [m.register_forward_pre_hook(note) for m in encoder.modules() if m is encoder or isinstance(m, nn.Conv2d)]
    encoder._probe()
    for h in hooks: h.remove()
    full = wide.pop(encoder)
    for m,n in wide.items():
        by = round(full/n)//stride
        if by < 1 or max(m.stride) > 1 and max(m.kernel_size) % 2 == 0: continue
        m.stride = 1,1
        if max(m.kernel_size) == 1: continue
        m.dilation = tuple(o*by for o in m.dilation)
        if not isinstance(m.padding, str): m.padding = tuple(o*by for o in m.padding)
    encoder.taps = None
    try: encoder._measure()
    except RuntimeError: pass                            # maps that are added no longer have the same size
    else:
        if encoder.strides[-1] <= stride: return encoder
    raise ValueError(f"{encoder.name} cannot be dilated to stride {stride}, because other layers than convolutions of "
                     f"odd size downsample its maps; use stride={last}, or another encoder")

class LRASPP(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits; any height and width that `encoder` takes"
    @checked_net(encoder=ENCODER, width=CHANNELS)
    def __init__(self,
        encoder,     # with a map at stride 8 and a later one
        n_out,       # classes, background included
        width=128,   # channels of the head
    ):
        super().__init__()
        if 8 not in encoder.strides[:-1]:
            raise ValueError(f"LR-ASPP needs a map at stride 8 and a later one, but {encoder.name} has strides "
                             f"{encoder.strides}; choose another encoder")
        self.encoder,self.low = encoder,encoder.strides.index(8)
        self.head = LRASPPHead(encoder.channels[self.low], encoder.channels[-1], n_out, width)

    def forward(self, x:Tensor) -> Tensor:
        maps = self.encoder(x)
        return F.interpolate(self.head(dict(low=maps[self.low], high=maps[-1])), x.shape[-2:], mode='bilinear')

@register('segmentation', 'lraspp', kw=dict(encoder='test_efficientnet'), n_params=3_221_538,
          recipe=dict(base_lr=8e-3, lr_mult=5.))
@checked_net()
def lraspp(
    n_out:int,                     # classes, background included
    n_in:int=3,                    # channels of the images
    width:float=1.,                # factor of the channels; 1 = 128 in the head
    pretrained=False,              # weights of the encoder: True (ImageNet), or the path of a local state dict
    encoder='mobilenet_v3_large',  # as for `create_encoder`, with a map at stride 8
    stride:int=16,                 # of the last map: an encoder with a larger one is dilated; 32: no dilation
) -> LRASPP:
    """Lite R-ASPP on any encoder; 'lraspp_mobilenet_v3_large' is torchvision's, with its weights. Raises `ValueError`
    for encoders without a map at stride 8, or that cannot be dilated"""
    return LRASPP(dilate(create_encoder(encoder, pretrained, n_in), stride), n_out, scaled(128, width))
