"""The sliding window: a classifier looks at windows of several sizes and shapes all over the picture, and what is best
among its neighbours is found (as Sermanet et al., 2013, arXiv:1312.6229, but without their regression of boxes). The
baseline that every other net should beat. The windows of one size and shape are squares in a picture that is resized
for it; a classifier without padding and pooling makes all of these in one convolutional pass, for neighbours share
their work. An encoder's windows are warped and classified one by one, as R-CNN's regions are"""
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
    n_in:int=3,
    window:int=32,     # height and width in pixels, a multiple of 8 from 16 on
    width:float=1.,    # 1 = 32 channels in the first layer, 64 in the others
) -> nn.Sequential:    # (b, n_in, window, window) -> (b, c, 1, 1); of larger pictures the features of every 4th window
    "Two convolutions of stride 2, then those of 3 x 3 until one cell is left, all without padding"
    if window < 16 or window%8:
        raise ValueError(f"window is a multiple of 8 pixels from 16 on, so that the layers come out even; not {window}")
    a,b = scaled(32, width),scaled(64, width)
    net = nn.Sequential(*conv_relu(n_in, a, 4, stride=2), *conv_relu(a, b, 3, stride=2),
                        *[l for _ in range(window//8 - 1) for l in conv_relu(b, b)])
    init_he(net)
    return net

@checked_net()
def default_windows(
    size:int|tuple=512,  # of the pictures in pixels: the shorter side, or (w, h)
) -> tuple:              # square roots of areas, in pixels: what `sizes=` takes
    "From an eighth of the picture to all of it, by factors of 2^(1/2): between two of them the IoU stays above .7"
    side = size if isinstance(size, int) else min(size)
    return tuple(side/8*2**(i/2) for i in range(7))

class SlidingWindowDetector(Detector):
    "A classifier at every window; without an `encoder`, that of `window_classifier`"
    @checked_net()
    def __init__(self,
        n_out:int,                 # classes without background
        body:nn.Module,            # of windows, as `window_classifier` makes it; or (n, c, window, window) -> (n, d)
        d:int,                     # features
        window:int,                # in pixels of the resized picture
        sizes:tuple,               # of windows in the picture: square roots of areas, in pixels
        ratios:tuple=(.5, 1., 2.), # height/width; a window is never larger than the picture
        stride:int=None,           # pixels between windows, of the resized picture; a multiple of 4, where there is no
                                   # `encoder`. None: 4, with an encoder a quarter of the window
        dense:bool=None,           # one pass over the resized picture (True), or window by window (False). The answers
                                   # are the same; an encoder, which pads, knows only the second. None: what is possible
        min_score:float=MIN_SCORE, # detections that score less are dropped
        max_dets:int=100,          # a picture
        nms:float=.3,              # IoU above which the worse of two boxes of a class goes, of
        n_best:int=1000,           # windows of that class, the best
        n_windows:tuple=(16, 48),  # a picture to learn from, at most: objects (IoU .5 or more) and background
        chunk:int=256,             # windows in memory at a time, unless their gradients are wanted
    ):
        super().__init__()
        self.is_conv = isinstance(body, nn.Sequential)
        if dense is None: dense = self.is_conv
        if dense and not self.is_conv:
            raise ValueError("an encoder pads, so that a window alone gives other features than the same one in a "
                             "picture: leave `dense` out, or take the net without an encoder")
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

    def levels(self, size) -> list[tuple[int,int]]:
        "(h, w) to which pictures of `size` (h, w) are resized, once for each size and shape of the windows"
        h,w = size
        # of a window of area s*s and shape r; where it would be larger than the picture, it is as large as that
        return list(dict.fromkeys((max(round(h*self.window/(s*r**.5)), self.window),
                                   max(round(w*self.window*r**.5/s), self.window))
                                  for s in self.sizes for r in self.ratios))

    def grid(self, level, size, device=None) -> Tensor:
        "(n, 4) pixels of a picture of `size` (h, w): the windows of one of its `levels`, row by row"
        y,x = (torch.arange(0, n - self.window + 1, self.stride, device=device) for n in level)
        y,x = (o.flatten() for o in torch.meshgrid(y, x, indexing='ij'))
        by = [n/l for n,l in zip(size, level)]
        return torch.stack([x, y, x + self.window, y + self.window], 1)*torch.tensor([by[1], by[0]]*2, device=device)

    # --- what they show

    def features(self, x, regions) -> Tensor: # b times (n, 4) -> (all n, d)
        rois = as_rois(regions)
        some = rois.split(max(len(rois), 1) if self.training else self.chunk)
        net  = self.body if self.is_conv else self.encoder
        return torch.cat([net(warp_regions(x, o, self.window)).flatten(1) for o in some])

    def logits(self, x, level) -> Tensor: # (b, c, h, w) -> (b, n, n_out+1), of the windows of `grid`
        if not self.is_conv:
            return self.classifier(self.features(x, [self.grid(level, x.shape[-2:], x.device)]*len(x))).unflatten(
                0, (len(x), -1)).float()
        x = F.interpolate(x, level, mode='bilinear', antialias=True)
        if self.dense: feats = self.body(x)[..., ::self.stride//STEP, ::self.stride//STEP].flatten(2).transpose(1, 2)
        else: feats = self.cut(x)
        return self.classifier(feats).float()

    def cut(self, x) -> Tensor: # (b, c, h, w) -> (b, n, d)
        "Features window by window, `chunk` at a time"
        cut = [self.window, self.stride]
        patches = x.unfold(2, *cut).unfold(3, *cut).permute(0, 2, 3, 1, 4, 5)  # (b, h, w, c, window, window), a view
        b,h,w = patches.shape[:3]
        some = torch.arange(b*h*w, device=x.device).split(self.chunk)
        feats = torch.cat([self.body(patches[torch.unravel_index(i, (b, h, w))]) for i in some])
        return feats.view(b, h*w, -1)

    def losses_and_dets(self, x, targs, proposals):
        if proposals is not None: raise ValueError("a sliding window goes everywhere; do not pass proposals")
        if self.training: return self.loss_parts(x, targs),None
        size  = x.shape[-2:]
        boxes,scores = zip(*[(self.grid(l, size, x.device), self.logits(x, l).softmax(-1)[...,1:])
                             for l in self.levels(size)])
        refuse_nan(scores)
        boxes,scores = torch.cat(boxes)[:,None].expand(-1, self.n_out, -1),torch.cat(scores, 1)
        least  = scores.topk(min(self.n_best, len(boxes)), 1).values[:,-1:]    # of a new net all may pass
        scores = torch.where(scores >= least, scores, 0.)
        dets = pad_dets([nms_dets(boxes, s, size, self.min_score, self.nms, self.max_dets) for s in scores], size,
                        self.max_dets)
        if targs is None: return None,dets
        with seeded(x.device): return self.loss_parts(x, targs),dets

    # --- learning

    def loss_parts(self, x, targs) -> dict[str,Tensor]:
        grid = torch.cat([self.grid(l, x.shape[-2:], x.device) for l in self.levels(x.shape[-2:])])
        regions,labels = zip(*[self.sample_windows(grid, t) for t in targs])
        return dict(classifier=window_loss(self, x, regions, torch.cat(labels)))

    def sample_windows(self, grid, targ) -> tuple[Tensor,Tensor]:
        "(n, 4) windows of a picture to learn from, and their labels (n,), 0 = background"
        truth = targ['boxes'][targ['labels'] > 0]
        unseen = truth[box_iou(truth, grid).amax(1) < .5]
        # an object that no window fits is shown as it is and, eight times, with edges up to a tenth of its size beside
        near = unseen.repeat(8, 1) + (torch.rand(8*len(unseen), 4, device=grid.device)*.2 - .1)*(
            unseen[:,2:] - unseen[:,:2]).repeat(8, 2)
        windows = torch.cat([grid, unseen, near])
        kind = label_windows(windows, targ)
        keep = pick_windows(kind, *self.n_windows)
        return windows[keep],kind[keep]

@register('detection', 'sliding_window', weights=False, kw=dict(width=.5, size=64), n_params=132_213)
@checked_net()
def sliding_window_detector(
    n_out:int,
    n_in:int=3,
    width:float=1.,             # 1 = 32 channels in the first layer, 64 in the others; not with an `encoder`
    pretrained=False,           # of `encoder`: True, or the path of a local state dict
    encoder=None,               # None: a small net without padding and pooling; or what `create_encoder` takes
    size:int|tuple=512,         # of the pictures in pixels, shorter side or (w, h), for `default_windows`
    window:int=None,            # side in pixels of what the net sees of a window; None: 32; 64 with an `encoder`, or
                                # what that takes
    sizes:tuple=None,           # of windows in the picture: square roots of areas, in pixels; None: `default_windows`
    **kwargs,                   # of `SlidingWindowDetector`: `ratios`, `stride`, `dense`, `n_windows`, ...
) -> SlidingWindowDetector:
    "Classify windows of all sizes and shapes: the baseline that every other net should beat"
    sizes = default_windows(size) if sizes is None else tuple(sizes)
    if encoder is not None:
        body,window = window_encoder(encoder, pretrained, n_in, window, 64)
        net = SlidingWindowDetector(n_out, body, body.d, window, sizes, **kwargs)
        net.mean,net.std = mean_std(body, n_in)
        return net
    if pretrained: raise ValueError("there are no pretrained weights of the sliding window's own net: pass "
                                    "pretrained=False, or name an `encoder`, which has some")
    body = window_classifier(n_in, window or 32, width)
    return SlidingWindowDetector(n_out, body, scaled(64, width), window or 32, sizes, **kwargs)
