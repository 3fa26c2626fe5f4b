"""Sliding window detection: a classifier runs on windows of several sizes and aspects all over the image, and the best
among overlapping windows are the detections (as in Sermanet et al., 2013, arXiv:1312.6229, but without their box
regression). The baseline that every other net should beat. The windows of one size and aspect are squares in an image
that is resized for them; a classifier without padding and pooling runs on all of these in one convolutional pass,
because neighbours share their computations. With an encoder, windows are warped and classified one by one, as R-CNN's
regions are"""
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou
from ..kinds import checked_net
from ..layers import conv_relu, init_he, refuse_nan, scaled
from ..registry import register
from .base import MIN_SCORE, Detector, nms_dets, pad_dets
from .windows import as_rois, label_windows, mean_std, pick_windows, warp_regions, window_encoder, window_loss
from .torchvision_parts import seeded

__all__ = ['SlidingWindowDetector', 'window_classifier', 'default_windows', 'sliding_window_detector']

STEP = 4      # pixels between the windows of `window_classifier`

def window_classifier(
    n_in:int=3,        # channels of the images
    window:int=32,     # height and width in pixels, a multiple of 8 from 16 on
    width:float=1.,    # factor of the channels; 1 = 32 in the first layer, 64 in the others
) -> nn.Sequential:    # (b, n_in, window, window) -> (b, c, 1, 1); for larger images the features of every 4th window
    """Two convolutions of stride 2, then 3 x 3 convolutions down to one cell, all without padding. Raises `ValueError`
    for other windows than multiples of 8 from 16 on"""
    if window < 16 or window%8:
        raise ValueError(f"window: expected a multiple of 8 pixels from 16 on, so that the layers fit, got {window}")
    a,b = scaled(32, width),scaled(64, width)
    net = nn.Sequential(*conv_relu(n_in, a, 4, stride=2), *conv_relu(a, b, 3, stride=2),
                        *[l for _ in range(window//8 - 1) for l in conv_relu(b, b)])
    init_he(net)
    return net

@checked_net()
def default_windows(
    size:int|tuple=512,  # size of the images in pixels: the shorter side, or (w, h)
) -> tuple:              # square roots of areas in pixels, for `sizes=`
    "From an eighth of the image to all of it, in steps of 2^(1/2): the IoU of neighbouring sizes is above 0.7"
    side = size if isinstance(size, int) else min(size)
    return tuple(side/8*2**(i/2) for i in range(7))

class SlidingWindowDetector(Detector):
    "A classifier at every window; without an `encoder`, that of `window_classifier`"
    @checked_net()
    def __init__(self,
        n_out:int,                 # classes without background
        body:nn.Module,            # `window_classifier`, or an encoder (n, c, window, window) -> (n, d)
        d:int,                     # features of a window
        window:int,                # height and width of a window in pixels of the resized image
        sizes:tuple,               # sizes of windows in the image: square roots of areas in pixels
        ratios:tuple=(.5, 1., 2.), # height/width of windows; a window is never larger than the image
        stride:int=None,           # pixels of the resized image between windows, a multiple of 4 without an encoder;
                                   # None (default): 4, with an encoder a quarter of the window
        dense:bool=None,           # True: one pass over the resized image; False: window by window. Both give the same
                                   # result; an encoder, which pads, needs False. None (default): True where possible
        min_score:float=MIN_SCORE, # detections with a lower score are dropped
        max_dets:int=100,          # detections per image
        nms:float=.3,              # a detection is dropped if its IoU with a better one of its class is above this
        n_best:int=1000,           # windows per class that enter the non-maximum suppression, the best
        n_windows:tuple=(16, 48),  # windows per image to learn from, at most: objects (IoU >= 0.5) and background
        chunk:int=256,             # windows in memory at a time; in training mode all
    ):
        super().__init__()
        self.is_conv = isinstance(body, nn.Sequential)
        if dense is None: dense = self.is_conv
        if dense and not self.is_conv:
            raise ValueError("dense: an encoder pads, so that a window has other features than the same part of an "
                             "image; leave `dense` out, or use the net without an encoder")
        stride = stride or (STEP if self.is_conv else max(window//4, 1))
        if self.is_conv and stride%STEP:
            raise ValueError(f"stride: expected a multiple of {STEP} where there is no encoder, got {stride}")
        self.encoder = None if self.is_conv else body
        if self.is_conv: self.body = body
        self.classifier = nn.Linear(d, n_out+1)
        nn.init.normal_(self.classifier.weight, std=.01)
        nn.init.zeros_(self.classifier.bias)
        self.n_out,self.window,self.sizes,self.ratios,self.stride,self.dense = n_out,window,sizes,ratios,stride,dense
        self.min_score,self.max_dets,self.nms,self.n_best = min_score,max_dets,nms,n_best
        self.n_windows,self.chunk = n_windows,chunk

    # --- where windows are

    def levels(self,
        size:tuple[int,int],       # (h, w) pixels of the images
    ) -> list[tuple[int,int]]:
        "Sizes (h, w) to which images are resized, one for each size and aspect of the windows"
        h,w = size
        # for windows of area s*s and aspect r; a window that would be larger than the image gets the image's size
        return list(dict.fromkeys((max(round(h*self.window/(s*r**.5)), self.window),
                                   max(round(w*self.window*r**.5/s), self.window))
                                  for s in self.sizes for r in self.ratios))

    def grid(self,
        level:tuple[int,int],      # (h, w), one of `levels(size)`
        size:tuple[int,int],       # (h, w) pixels of the image
        device=None,               # of the result; None (default): CPU
    ) -> Tensor:                   # (n, 4) pixels of the image
        "The windows of one level, row by row"
        y,x = (torch.arange(0, n - self.window + 1, self.stride, device=device) for n in level)
        y,x = (o.flatten() for o in torch.meshgrid(y, x, indexing='ij'))
        by = [n/l for n,l in zip(size, level)]
        return torch.stack([x, y, x + self.window, y + self.window], 1)*torch.tensor([by[1], by[0]]*2, device=device)

    # --- features and logits of windows

    def features(self,
        x:Tensor,                  # (b, c, h, w)
        regions:list[Tensor],      # per image (n, 4) pixels
    ) -> Tensor:                   # (all n, d)
        "Features of windows that are warped one by one"
        rois = as_rois(regions)
        some = rois.split(max(len(rois), 1) if self.training else self.chunk)
        net  = self.body if self.is_conv else self.encoder
        return torch.cat([net(warp_regions(x, o, self.window)).flatten(1) for o in some])

    def logits(self,
        x:Tensor,                  # (b, c, h, w)
        level:tuple[int,int],      # (h, w), one of `levels`
    ) -> Tensor:                   # (b, n, n_out+1), class 0 is background
        "Logits of the windows of `grid`"
        if not self.is_conv:
            return self.classifier(self.features(x, [self.grid(level, x.shape[-2:], x.device)]*len(x))).unflatten(
                0, (len(x), -1)).float()
        x = F.interpolate(x, level, mode='bilinear', antialias=True)
        if self.dense: feats = self.body(x)[..., ::self.stride//STEP, ::self.stride//STEP].flatten(2).transpose(1, 2)
        else: feats = self.cut(x)
        return self.classifier(feats).float()

    def cut(self,
        x:Tensor,                  # (b, c, h, w) resized images
    ) -> Tensor:                   # (b, n, d)
        "Features of all windows, `chunk` windows at a time"
        cut = [self.window, self.stride]
        patches = x.unfold(2, *cut).unfold(3, *cut).permute(0, 2, 3, 1, 4, 5)  # (b, h, w, c, window, window), a view
        b,h,w = patches.shape[:3]
        some = torch.arange(b*h*w, device=x.device).split(self.chunk)
        feats = torch.cat([self.body(patches[torch.unravel_index(i, (b, h, w))]) for i in some])
        return feats.view(b, h*w, -1)

    def losses_and_dets(self, x, targs, proposals):
        if proposals is not None: raise ValueError("a sliding window covers the whole image; do not pass proposals")
        if self.training: return self.loss_parts(x, targs),None
        size  = x.shape[-2:]
        boxes,scores = zip(*[(self.grid(l, size, x.device), self.logits(x, l).softmax(-1)[...,1:])
                             for l in self.levels(size)])
        refuse_nan(scores)
        boxes,scores = torch.cat(boxes)[:,None].expand(-1, self.n_out, -1),torch.cat(scores, 1)
        least  = scores.topk(min(self.n_best, len(boxes)), 1).values[:,-1:]    # untrained, all may pass
        scores = torch.where(scores >= least, scores, 0.)
        dets = pad_dets([nms_dets(boxes, s, size, self.min_score, self.nms, self.max_dets) for s in scores], size,
                        self.max_dets)
        if targs is None: return None,dets
        with seeded(x.device): return self.loss_parts(x, targs),dets

    # --- losses

    def loss_parts(self,
        x:Tensor,                  # (b, c, h, w)
        targs:list[dict],          # per image, as `make_targets` returns them
    ) -> dict[str,Tensor]:
        "Losses by name"
        grid = torch.cat([self.grid(l, x.shape[-2:], x.device) for l in self.levels(x.shape[-2:])])
        regions,labels = zip(*[self.sample_windows(grid, t) for t in targs])
        return dict(classifier=window_loss(self, x, regions, torch.cat(labels)))

    def sample_windows(self,
        grid:Tensor,               # (m, 4) pixels: all windows of the image
        targ:dict[str,Tensor],     # of the image, as `make_targets` returns it
    ) -> tuple[Tensor,Tensor]:     # (n, 4) pixels; (n,) labels, 0 = background
        "A random sample of windows to learn from"
        bboxes = targ['boxes'][targ['labels'] > 0]
        unseen = bboxes[box_iou(bboxes, grid).amax(1) < .5]
        # an object without a window of IoU 0.5 is used itself, and eight times with edges moved by up to a tenth of
        # its size
        near = unseen.repeat(8, 1) + (torch.rand(8*len(unseen), 4, device=grid.device)*.2 - .1)*(
            unseen[:,2:] - unseen[:,:2]).repeat(8, 2)
        windows = torch.cat([grid, unseen, near])
        kind = label_windows(windows, targ)
        keep = pick_windows(kind, *self.n_windows)
        return windows[keep],kind[keep]

@register('detection', 'sliding_window', weights=False, kw=dict(width=.5, size=64), n_params=132_213)
@checked_net()
def sliding_window_detector(
    n_out:int,                  # classes without background
    n_in:int=3,                 # channels of the images
    width:float=1.,             # factor of the channels; 1 = 32 in the first layer, 64 in the others; unused with an
                                # `encoder`
    pretrained=False,           # weights of `encoder`: True (ImageNet), or the path of a local state dict
    encoder=None,               # as for `create_encoder`; None (default): a small net without padding and pooling
    size:int|tuple=512,         # size of the images in pixels, the shorter side or (w, h), for `default_windows`
    window:int=None,            # height and width in pixels to which windows are resized; None (default): 32, with an
                                # `encoder` 64, or its only size
    sizes:tuple=None,           # sizes of windows in the image: square roots of areas in pixels; None (default):
                                # `default_windows`
    **kwargs,                   # arguments of `SlidingWindowDetector`: `ratios`, `stride`, `dense`, `n_windows`, ...
) -> SlidingWindowDetector:
    "Classify windows of all sizes and shapes: the baseline that every other net should beat"
    sizes = default_windows(size) if sizes is None else tuple(sizes)
    if encoder is not None:
        body,window = window_encoder(encoder, pretrained, n_in, window, 64)
        net = SlidingWindowDetector(n_out, body, body.d, window, sizes, **kwargs)
        net.mean,net.std = mean_std(body, n_in)
        return net
    if pretrained: raise ValueError("there are no pretrained weights of the sliding window's own net: pass "
                                    "pretrained=False, or choose an `encoder`, which has some")
    body = window_classifier(n_in, window or 32, width)
    return SlidingWindowDetector(n_out, body, scaled(64, width), window or 32, sizes, **kwargs)
