"""FC-DenseNet: dense blocks on a path down and a path up (Jegou et al., 2016, arXiv:1611.09326). In evaluation mode
BatchNorm uses running statistics, not the batch's as in the paper: a prediction must not depend on the other images"""
from __future__ import annotations
import torch
from torch import Tensor, nn
from ...arguments import Kind, several, whole
from ..kinds import CHANNELS, checked_net
from ..layers import check_norm, scaled
from ..registry import register

__all__ = ['FCDenseNet', 'fc_densenet56', 'fc_densenet67', 'fc_densenet103']

def norm_conv(n_in, n_out, ks, ps):
    "The paper's layer (table 1)"
    return nn.Sequential(nn.BatchNorm2d(n_in), nn.ReLU(inplace=True), nn.Conv2d(n_in, n_out, ks, padding=ks//2),
                         nn.Dropout(ps))

class DenseBlock(nn.Sequential):
    "(b, c, h, w) -> (b, c + n*k, h, w): each of `n` layers takes all maps so far, and appends `k`"
    def __init__(self, c, n, k, ps): super().__init__(*[norm_conv(c + i*k, k, 3, ps) for i in range(n)])
    def forward(self, x):
        for layer in self: x = torch.cat([x, layer(x)], 1)
        return x

_many  = several(whole(1, 1000), "")
LAYERS = Kind("an odd number of counts of layers, 3 at least: of the blocks down, the middle one, those up",
              lambda o: len(o) >= 3 and len(o) % 2 == 1, convert=_many)

class FCDenseNet(nn.Module):
    """(b, n_in, h, w) -> (b, n_out, h, w) logits, for any height and width from 2**(blocks down) on, usually 32. Raises
    `ValueError` for smaller images"""
    @checked_net(layers=LAYERS, k=CHANNELS, first=CHANNELS)
    def __init__(self,
        n_out,             # classes, background included
        n_in=3,            # channels of the images
        layers=(4,)*11,    # layers of the blocks down, the middle one, and as many up
        k=12,              # growth rate: maps per layer
        first=48,          # maps of the first convolution
        ps=.2,             # dropout after each convolution except the first, the last and the transposed ones
    ):
        super().__init__()
        n,c,skips = len(layers)//2,first,[]
        self.first = nn.Conv2d(n_in, c, 3, padding=1)
        self.down,self.shrink,self.grow,self.up = (nn.ModuleList() for _ in range(4))
        for l in layers[:n]:
            self.down.append(DenseBlock(c, l, k, ps))
            c += l*k
            self.shrink.append(nn.Sequential(norm_conv(c, c, 1, ps), nn.MaxPool2d(2)))
            skips.append(c)
        self.middle = DenseBlock(c, layers[n], k, ps)
        for before,l in zip(layers[n:], layers[n+1:]):
            new = before*k
            self.grow.append(nn.ConvTranspose2d(new, new, 3, stride=2))
            c = new + skips.pop()
            self.up.append(DenseBlock(c, l, k, ps))
        self.score = nn.Conv2d(c + l*k, n_out, 1)
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_uniform_(m.weight, nonlinearity='relu')
                nn.init.zeros_(m.bias)

    def forward(self, x:Tensor) -> Tensor:
        self._check(x)
        x,skips = self.first(x),[]
        for block,shrink in zip(self.down, self.shrink):
            skips.append(block(x))
            x = shrink(skips[-1])
        x = self.middle(x)
        for grow,block in zip(self.grow, self.up):
            skip = skips.pop()
            x = grow(x[:, -grow.in_channels:])       # §3.2: only the maps of the block before are upsampled
            x = block(torch.cat([x[..., :skip.shape[2], :skip.shape[3]], skip], 1))
        return self.score(x)

    def _check(self, x):
        (h,w),n = x.shape[-2:],len(self.shrink)
        if min(h, w) < 2**n:
            raise ValueError(f"FC-DenseNet halves images {n} times and takes heights and widths of {2**n} or more, got "
                             f"{h} x {w}; resize or pad to {max(h, 2**n)} x {max(w, 2**n)} at least")
        check_norm(self, x, (h//2**n, w//2**n))

def _build(layers, k, n_out, n_in, width, pretrained, ps):
    if pretrained: raise ValueError("there are no pretrained weights of FC-DenseNet: pass pretrained=False, or use "
                                    "'dynamic_unet', whose encoder has some")
    return FCDenseNet(n_out, n_in, layers, scaled(k, width), scaled(48, width), ps)

_facts = dict(weights=False, min_bs=2, refuses={(31, 40): 'of 32 or more, got 31 x 40; .* to 32 x 40 at',
                                                (200, 8): 'of 32 or more, got 200 x 8; .* to 200 x 32 at'})

@register('segmentation', kw=dict(width=.25), n_params=1_378_725, **_facts)
@checked_net()
def fc_densenet56(
    n_out:int,               # classes, background included
    n_in:int=3,              # channels of the images
    width:float=1.,          # factor of the channels; 1 = 48 maps of the first convolution, 12 of each layer
    pretrained=False,        # there are no weights: True raises
    ps:float=.2,             # dropout after the layers of blocks and before the poolings
) -> FCDenseNet:
    "Blocks of 4 layers; 56 convolutions in all"
    return _build((4,)*11, 12, n_out, n_in, width, pretrained, ps)

@register('segmentation', like='fc_densenet56', n_params=3_466_133, **_facts)
@checked_net()
def fc_densenet67(
    n_out:int,               # classes, background included
    n_in:int=3,              # channels of the images
    width:float=1.,          # factor of the channels; 1 = 48 maps of the first convolution, 16 of each layer
    pretrained=False,        # there are no weights: True raises
    ps:float=.2,             # dropout after the layers of blocks and before the poolings
) -> FCDenseNet:
    "Blocks of 5 layers with 16 maps each; 67 convolutions in all"
    return _build((5,)*11, 16, n_out, n_in, width, pretrained, ps)

@register('segmentation', like='fc_densenet56', n_params=9_324_661, **_facts)
@checked_net()
def fc_densenet103(
    n_out:int,               # classes, background included
    n_in:int=3,              # channels of the images
    width:float=1.,          # factor of the channels; 1 = 48 maps of the first convolution, 16 of each layer
    pretrained=False,        # there are no weights: True raises
    ps:float=.2,             # dropout after the layers of blocks and before the poolings
) -> FCDenseNet:
    "Blocks of 4 layers at full resolution to 15 in the middle, with 16 maps each; 103 convolutions in all"
    return _build((4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4), 16, n_out, n_in, width, pretrained, ps)
