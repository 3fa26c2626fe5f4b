"""Integral regression: a map for each point, whose expectation is the point (Sun et al., 2018, arXiv:1711.08229;
Nibali et al., 2018, arXiv:1801.07372). The papers' maps end with the image; here they have one more cell on each side,
so that points at its border can be reached"""
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ..arguments import POSITIVE, checked, instance, several, whole
from .kinds import CHANNELS, N_OUT, checked_net

__all__ = ['soft_argmax', 'HeatmapHead']

MARGIN = 1   # cells beyond each side of the image

@checked(maps=instance(Tensor, what="logits (b, k, h, w)"), margin=whole(0))
def soft_argmax(
    maps:Tensor,   # (b, k, h, w) logits
    margin:int=0,  # so many of the cells on each side lie outside the image
) -> Tensor:       # (b, k, 2) float32
    """x y of the expectation of each map's softmax, in [-1, 1] between the borders of the image: the centre of the
    first cell is at -1 + 1/n, where n cells cover the image"""
    maps = maps.float()
    p    = maps.flatten(2).softmax(-1).unflatten(2, maps.shape[2:])
    x,y  = (_centres(n, margin, p) for n in (p.shape[3], p.shape[2]))
    return torch.stack([(p.sum(2)*x).sum(-1), (p.sum(3)*y).sum(-1)], -1)

def _centres(n, margin, like):
    inside = n - 2*margin
    return (2*(torch.arange(n, device=like.device, dtype=like.dtype) - margin) + 1)/inside - 1

class HeatmapHead(nn.Module):
    "The maps of an encoder, from fine to coarse, are brought to the finest and added; from them a map for each point"
    @checked_net(channels=several(CHANNELS, "numbers of channels", least=1),
                 strides=several(whole(1), "strides in pixels", least=1), n_out=N_OUT, width=CHANNELS,
                 stride=whole(1), scale=POSITIVE)
    def __init__(self,
        channels:list[int],  # of the maps, from fine to coarse
        strides:list[int],   # of the maps, in pixels
        n_out:int,           # numbers: two for each point
        width:int=64,        # channels of the maps when they are added
        stride:int=8,        # of the finest map that is used, in pixels; the coarsest where all are coarser
        scale:float=20.,     # of the logits: an expectation is precise where a map is sharp, and weights that start
                             # near 0 take hundreds of steps to grow to that by themselves
    ):
        super().__init__()
        self.scale = scale
        if n_out%2: raise ValueError(f"n_out: expected two numbers for each point, got {n_out}")
        self.used = [i for i,s in enumerate(strides) if s >= stride] or [len(strides) - 1]
        self.lateral = nn.ModuleList(nn.Conv2d(channels[i], width, 1) for i in self.used)
        self.mix  = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True),
                                  nn.Conv2d(width, width, 3, padding=1 + MARGIN, bias=False), nn.BatchNorm2d(width),
                                  nn.ReLU(inplace=True))
        self.last = nn.Conv2d(width, n_out//2, 1)
        nn.init.normal_(self.last.weight, std=.01)    # flat maps at first: all points in the middle
        nn.init.zeros_(self.last.bias)

    def maps(self,
        features:list[Tensor], # (b, c, h, w) for each of `channels`
    ) -> Tensor:               # (b, k, h + 2, w + 2), h and w of the finest map that is used
        "The logits of each point's map, with a cell more on each side than the image has"
        x = None
        for conv,i in reversed([*zip(self.lateral, self.used)]):
            o = conv(features[i])
            x = o if x is None else o + F.interpolate(x, o.shape[-2:], mode='nearest')
        return self.scale*self.last(self.mix(x))

    def forward(self,
        features:list[Tensor], # as for `maps`
    ) -> Tensor:               # (b, n_out): x y of each point in [-1, 1]
        return soft_argmax.unchecked(self.maps(features), MARGIN).flatten(1)
