"""Sliding window segmentation: each pixel gets the class of the patch around it (as in Ciresan et al., 2012, NIPS, for
membranes). A classifier without padding and pooling, whose receptive field is the patch, runs on all patches in one
convolutional pass, because neighbours share their computations (Sermanet et al., 2013, arXiv:1312.6229)"""
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
    n_out:int,         # classes, background included
    n_in:int=3,        # channels of the images
    patch:int=33,      # height and width in pixels, odd; even ones raise `ValueError`
    width:float=1.,    # factor of the channels; 1 = 32 in each layer
) -> nn.Sequential:    # (b, n_in, patch, patch) -> (b, n_out, 1, 1) logits; for larger images those of every patch
    "5 x 5 convolutions without padding down to one pixel, with a 3 x 3 one where they do not fit"
    _check_patch(patch)
    c,layers = scaled(32, width),[]
    for ks in [5]*(patch//4) + [3]*(patch%4 == 3):
        layers += conv_relu(n_in, c, ks)
        n_in = c
    net = nn.Sequential(*layers, nn.Conv2d(n_in, n_out, 1))
    init_he(net)
    return net

class SlidingWindowSegmenter(nn.Module):
    """(b, n_in, h, w) -> (b, n_out, h, w): at each pixel the logits of `classifier` for the patch centred there; any
    height and width. Images are padded with zeros, the mean colour of normalized images"""
    @checked_net(classifier=MODULE)
    def __init__(self,
        classifier,            # (b, n_in, patch, patch) -> (b, n_out, 1, 1), without padding, pooling and strides
        patch:int,             # height and width in pixels, odd
        route:str='conv',      # 'conv': one pass over the image; 'windows': patch by patch. The logits are the same
        stride:int=1,          # pixels between classified pixels; the logits between them are interpolated. A stride of
                               # 2 or more makes 'windows' faster, not 'conv'
        at_once:int=256,       # patches per forward pass of 'windows'
    ):
        super().__init__()
        _check_patch(patch)
        self.classifier,self.patch,self.route,self.stride,self.at_once = classifier,patch,route,stride,at_once

    def forward(self, x:Tensor) -> Tensor:
        grid = getattr(self, self.route)(F.pad(x, [self.patch//2]*4))
        if self.stride == 1: return grid
        # bilinear, since logits change gradually; nearest would draw squares. Classified pixels keep their own logits;
        # beyond the last of them its logits are repeated
        grid = F.pad(grid, (0, 1, 0, 1), mode='replicate')
        size = [(n-1)*self.stride + 1 for n in grid.shape[-2:]]
        return F.interpolate(grid, size, mode='bilinear', align_corners=True)[..., :x.shape[-2], :x.shape[-1]]

    def conv(self,
        x:Tensor,              # (b, n_in, h + patch - 1, w + patch - 1) padded images
    ) -> Tensor:               # (b, n_out, rows, columns) logits of the classified pixels
        "All patches in one pass"
        return self.classifier(x)[..., ::self.stride, ::self.stride]

    def windows(self,
        x:Tensor,              # as for `conv`
    ) -> Tensor:
        "The same, patch by patch"
        cut = [self.patch, self.stride]
        patches = x.unfold(2, *cut).unfold(3, *cut).permute(0, 2, 3, 1, 4, 5)  # (b, h, w, c, patch, patch), a view
        b,h,w = patches.shape[:3]
        some = torch.arange(b*h*w, device=x.device).split(self.at_once)
        logits = torch.cat([self.classifier(patches[torch.unravel_index(i, (b, h, w))]) for i in some])
        return logits.view(b, h, w, -1).permute(0, 3, 1, 2)

@register('segmentation', 'sliding_window', weights=False, kw=dict(width=.25), n_params=182_549)
@checked_net()
def sliding_window_segmenter(
    n_out:int,               # classes, background included
    n_in:int=3,              # channels of the images
    width:float=1.,          # factor of the channels; 1 = 32 in each layer
    pretrained=False,        # there are no weights: True raises
    patch:int=33,            # height and width of a patch in pixels, odd
    **kwargs,                # arguments of `SlidingWindowSegmenter`: `route`, `stride`, `at_once`
) -> SlidingWindowSegmenter:
    "Classify the patch centred at each pixel: the baseline that every other net should beat"
    if pretrained: raise ValueError("there are no pretrained weights of the sliding window: pass pretrained=False, or "
                                    "use 'dynamic_unet', whose encoder has some")
    return SlidingWindowSegmenter(patch_classifier(n_out, n_in, patch, width), patch, **kwargs)
