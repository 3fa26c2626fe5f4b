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
def dilate(encoder:Encoder, stride:int) -> Encoder:
    """Let `encoder` shrink pictures by no more than `stride`: later convolutions go by single pixels and are dilated
    instead, with the weights that they have (Yu et al., 2017, arXiv:1705.09914). In place; `ValueError` where something
    else than convolutions of odd size makes the maps smaller"""
    if encoder.strides[-1] <= stride: return encoder
    last,wide = encoder.strides[-1],{}
    def note(m, x): wide[m] = x[0].shape[-1]             # the width of the map that comes to a module
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
    except RuntimeError: pass                            # maps of one step that no longer fit each other
    else:
        if encoder.strides[-1] <= stride: return encoder
    raise ValueError(f"{encoder.name} cannot be dilated to stride {stride}, for its maps are not made smaller by "
                     f"convolutions of odd size alone; take stride={last}, or another encoder")

class LRASPP(nn.Module):
    "(b, n_in, h, w) -> (b, n_out, h, w) logits, of any height and width that `encoder` takes"
    @checked_net(encoder=ENCODER, width=CHANNELS)
    def __init__(self, encoder, n_out, width=128):
        super().__init__()
        if 8 not in encoder.strides[:-1]:
            raise ValueError(f"LR-ASPP stands on a map at stride 8 and a later one; {encoder.name} gives strides "
                             f"{encoder.strides}: take another encoder")
        self.encoder,self.low = encoder,encoder.strides.index(8)
        self.head = LRASPPHead(encoder.channels[self.low], encoder.channels[-1], n_out, width)

    def forward(self, x:Tensor) -> Tensor:
        maps = self.encoder(x)
        return F.interpolate(self.head(dict(low=maps[self.low], high=maps[-1])), x.shape[-2:], mode='bilinear')

@register('segmentation', 'lraspp', kw=dict(encoder='test_efficientnet'), n_params=3_221_538)
@checked_net()
def lraspp(
    n_out:int,
    n_in:int=3,
    width:float=1.,                # 1 = 128 channels in the head
    pretrained=False,              # True, or the path of a local state dict: of the encoder
    encoder='mobilenet_v3_large',  # what `create_encoder` takes, with a map at stride 8
    stride:int=16,                 # of the last map: an encoder that goes further is dilated; 32 = as it is
) -> LRASPP:
    "Lite R-ASPP on any encoder; 'lraspp_mobilenet_v3_large' is torchvision's, with its weights"
    return LRASPP(dilate(create_encoder(encoder, pretrained, n_in), stride), n_out, scaled(128, width))
