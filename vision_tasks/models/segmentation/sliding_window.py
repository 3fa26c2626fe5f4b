"""The sliding window: each pixel gets the class of the patch around it (as Ciresan et al., 2012, NIPS, segmented
membranes). A classifier without padding and pooling that sees just the patch makes all windows in one convolutional
pass, for neighbours share their work (Sermanet et al., 2013, arXiv:1312.6229)"""
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ..kinds import MODULE, checked_net
from ..layers import conv_relu, init_he, scaled
from ..registry import register

__all__ = ['SlidingWindowSegmenter', 'patch_classifier', 'sliding_window_segmenter']

def _check_patch(patch):
    if patch%2 == 0:
        raise ValueError(f"patch: expected an odd number of pixels, so that one is in the middle, got {patch}")

@checked_net()
def patch_classifier(
    n_out:int,
    n_in:int=3,
    patch:int=33,      # height and width in pixels, odd
    width:float=1.,    # 1 = 32 channels in each layer
) -> nn.Sequential:    # (b, n_in, patch, patch) -> (b, n_out, 1, 1) logits; of larger pictures, those of every patch
    "Convolutions of 5 x 5 without padding, and one of 3 x 3 where these do not come out even, until one pixel is left"
    _check_patch(patch)
    c,layers = scaled(32, width),[]
    for ks in [5]*(patch//4) + [3]*(patch%4 == 3):
        layers += conv_relu(n_in, c, ks)
        n_in = c
    net = nn.Sequential(*layers, nn.Conv2d(n_in, n_out, 1))
    init_he(net)
    return net

class SlidingWindowSegmenter(nn.Module):
    """(b, n_in, h, w) -> (b, n_out, h, w), of any height and width: at each pixel the logits that `classifier` gives
    for the patch centred there. Around the picture are zeros: the mean colour, where pictures are normalised"""
    @checked_net(classifier=MODULE)
    def __init__(self,
        classifier,            # (b, n_in, patch, patch) -> (b, n_out, 1, 1), without padding, pooling and strides
        patch:int,             # in pixels, odd
        route:str='conv',      # 'conv': one pass over the picture; 'windows': patch by patch. The logits are the same
        stride:int=1,          # 2 or more: classify the pixels of a grid, every `stride`-th; fewer windows, while the
                               # pass over the picture costs as much as for all
        at_once:int=256,       # patches in memory at a time, unless their gradients are wanted
    ):
        super().__init__()
        _check_patch(patch)
        self.classifier,self.patch,self.route,self.stride,self.at_once = classifier,patch,route,stride,at_once

    def forward(self, x:Tensor) -> Tensor:
        grid = getattr(self, self.route)(F.pad(x, [self.patch//2]*4))
        if self.stride == 1: return grid
        # bilinear, since logits change gradually; nearest would draw squares. Classified pixels keep their own logits,
        # and beyond the last of them these stay as they are
        grid = F.pad(grid, (0, 1, 0, 1), mode='replicate')
        size = [(n-1)*self.stride + 1 for n in grid.shape[-2:]]
        return F.interpolate(grid, size, mode='bilinear', align_corners=True)[..., :x.shape[-2], :x.shape[-1]]

    def conv(self, x:Tensor) -> Tensor: # padded pictures -> logits of the grid
        "All windows at once"
        return self.classifier(x)[..., ::self.stride, ::self.stride]

    def windows(self, x:Tensor) -> Tensor: # padded pictures -> logits of the grid
        "Window by window"
        cut = [self.patch, self.stride]
        patches = x.unfold(2, *cut).unfold(3, *cut).permute(0, 2, 3, 1, 4, 5)  # (b, h, w, c, patch, patch), not a copy
        b,h,w = patches.shape[:3]
        some = torch.arange(b*h*w, device=x.device).split(self.at_once)
        logits = torch.cat([self.classifier(patches[torch.unravel_index(i, (b, h, w))]) for i in some])
        return logits.view(b, h, w, -1).permute(0, 3, 1, 2)

@register('segmentation', 'sliding_window', weights=False, kw=dict(width=.25), n_params=182_549)
@checked_net()
def sliding_window_segmenter(
    n_out:int,
    n_in:int=3,
    width:float=1.,          # 1 = 32 channels in each layer
    pretrained=False,        # there are no weights
    patch:int=33,            # in pixels, odd
    **kwargs,                # of `SlidingWindow`: `route`, `stride`, `at_once`
) -> SlidingWindowSegmenter:
    "Classify the patch centred at each pixel: the baseline that every other net should beat"
    if pretrained: raise ValueError("there are no pretrained weights of the sliding window: pass pretrained=False, or "
                                    "take 'dynamic_unet', whose encoder has some")
    return SlidingWindowSegmenter(patch_classifier(n_out, n_in, patch, width), patch, **kwargs)
