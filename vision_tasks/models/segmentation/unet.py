"""U-Net: a path down and a path up, with skip connections between them (Ronneberger et al., 2015, arXiv:1505.04597).
Dropout is where the released net has it; the paper states only 'at the end of the contracting path'"""
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ..kinds import checked_net
from ..layers import init_he, scaled
from ..registry import register

__all__ = ['UNet', 'unet']

# padding -> (pad of a 3x3 convolution, offset and minimum of the sizes offset + 16k, these in words)
_PADDINGS = dict(valid=(0, 60, 188, '16k + 60, at least 188'), same=(1, 0, 16, '16k'))

def double_conv(n_in, n_out, pad, ps=0.):
    "Two 3x3 convolutions with ReLU, and dropout"
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=pad),  nn.ReLU(inplace=True),
                         nn.Conv2d(n_out, n_out, 3, padding=pad), nn.ReLU(inplace=True),
                         *([nn.Dropout(ps)] if ps else []))

class UNet(nn.Module):
    """(b, n_in, h, w) -> (b, n_out, h - 184, w - 184) logits of the centre, for h and w of 16k + 60; with 'same'
    padding (b, n_out, h, w), for multiples of 16. Raises `ValueError` for other sizes"""
    @checked_net()
    def __init__(self,
        n_out,      # classes, background included
        n_in=3,     # channels of the images
        width=1.,   # factor of the channels
        padding='valid',  # of the convolutions: 'valid' (none) as in the paper, or 'same' (zeros)
        ps=.5,      # dropout after the last two levels of the path down
    ):
        super().__init__()
        self.padding,pad = padding,_PADDINGS[padding][0]
        chs = [scaled(64, width)*2**i for i in range(5)]
        self.down  = nn.ModuleList(double_conv(i, o, pad, ps*(o >= chs[3])) for i,o in zip([n_in, *chs], chs))
        self.up    = nn.ModuleList(nn.ConvTranspose2d(2*c, c, 2, 2) for c in reversed(chs[:-1]))
        self.merge = nn.ModuleList(double_conv(2*c, c, pad) for c in reversed(chs[:-1]))
        self.score = nn.Conv2d(chs[0], n_out, 1)
        init_he(self)

    def forward(self, x:Tensor) -> Tensor:
        self._check_size(*x.shape[-2:])
        maps = [self.down[0](x)]
        for stage in self.down[1:]: maps.append(stage(F.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for up,merge in zip(self.up, self.merge):
            x,skip = F.relu(up(x)),maps.pop()
            crop = (skip.shape[-1]-x.shape[-1])//2       # valid: 4, 16, 40, 88 on each side; same: 0
            x = merge(torch.cat([x, F.pad(skip, [-crop]*4)], 1))
        return self.score(x)

    def _check_size(self, h, w):
        _,offset,least,words = _PADDINGS[self.padding]
        def near(n):
            below = max(n-(n-offset) % 16, least)
            return f'{below}' if below >= n else f'{below} or {below+16}'
        if (near(h), near(w)) == (f'{h}', f'{w}'): return
        other = ", or use padding='same'" if self.padding == 'valid' else ''
        raise ValueError(f"a U-Net with padding={self.padding!r} takes heights and widths of {words}, got {h} x {w}; "
                         f"make the height {near(h)} and the width {near(w)}{other}")

@register('segmentation', 'unet', size=(188, 204), crop=184, kw=dict(width=.125), n_params=31_033_045, weights=False,
          refuses={(190, 188): 'height 188 or 204 and the width 188,', (572, 100): 'height 572 and the width 188,'})
@checked_net()
def unet(
    n_out:int,               # classes, background included
    n_in:int=3,              # channels of the images
    width:float=1.,          # factor of the channels; 1 = 64 in the first level, 1024 in the last
    pretrained=False,        # there are no weights: True raises
    padding:str='valid',     # 'valid' as in the paper: the output is smaller, without padding; or 'same'
    ps:float=.5,             # dropout after the last two levels of the path down
) -> UNet:
    "The U-Net of the paper"
    if pretrained: raise ValueError("there are no pretrained weights of the U-Net: pass pretrained=False, or use "
                                    "'dynamic_unet', whose encoder has some")
    return UNet(n_out, n_in, width, padding, ps)
