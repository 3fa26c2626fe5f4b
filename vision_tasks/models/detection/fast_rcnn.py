"""Fast R-CNN: an encoder runs once per image, and the part of its map inside each proposed region, pooled to 7x7, is
classified and its box refined (Girshick, 2015, arXiv:1504.08083). The proposals come from outside. As in the released
code:
- The ground truth boxes are among the regions to learn from, so that images without proposals are used too.
- Box deltas are learned in units of 0.1, 0.1, 0.2, 0.2, their usual standard deviations (the paper: mean 0, variance 1
  over the training set; the code of Faster R-CNN: these).
What differs:
- Background regions are those whose highest IoU with an object is in [0.1, 0.5). Where these are too few, as in images
  without objects, regions with a lower IoU fill up their share.
- A region on an ignored object is excluded (`on_ignored`).
- All layers learn once the learner is unfrozen (the paper: from conv3_1 on)."""
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import RoIAlign, RoIPool
from ..kinds import MODULE, checked_net
from ..layers import init_he, refuse_nan, scaled
from ..registry import register
from ..vgg import VGG16
from ...ops.boxes import iou_matrix
from .base import MIN_SCORE, Detector, check_proposals, decode_bboxes, encode_bboxes, nms_dets, on_ignored, pad_dets
from .pyramid import detector_encoder, freeze_norms
from .torchvision_parts import seeded

__all__ = ['FastRCNN', 'fast_rcnn']

# --- shared with `faster_rcnn_vgg16`

class VGG16Map(VGG16):
    "(b, n_in, h, w) -> (b, out_channels, h/16, w/16): conv5_3 of VGG16, without the last pooling"
    stride = 16
    @property
    def out_channels(self): return self.channels[-1]

    def forward(self, x:Tensor) -> Tensor:
        for i,stage in enumerate(self.stages): x = stage(F.max_pool2d(x, 2, ceil_mode=True) if i else x)
        return x

class EncoderMap(nn.Module):
    "(b, n_in, h, w) -> (b, out_channels, h/stride, w/stride): an encoder with one map"
    def __init__(self, body):
        super().__init__()
        self.body,self.stride,self.out_channels = body,body.strides[0],body.channels[0]

    def forward(self, x:Tensor) -> Tensor: return self.body(x)

class RoICells(nn.Module):
    "The 7x7 cells of each region: (b, c, h, w) and b times (n, 4) pixels of the image -> (all n, c, 7, 7)"
    def __init__(self,
        pool:str,     # 'pool': maximum over whole pixels of the map (Fast R-CNN); 'align': mean of 2x2 interpolated
                      # points, without rounding (Mask R-CNN, arXiv:1703.06870)
        stride:int,   # of the map, in pixels
    ):
        super().__init__()
        self.pool = RoIPool(7, 1/stride) if pool == 'pool' else RoIAlign(7, 1/stride, 2, aligned=True)

    def forward(self, maps, regions, sizes=None) -> Tensor:   # torchvision's `RoIHeads` passes {'0': map} and sizes
        x = maps if isinstance(maps, Tensor) else maps['0']
        return self.pool(x.float(), list(regions))

def map_and_head(encoder, pretrained, n_in, width, stride, ps) -> tuple[nn.Module,nn.Sequential,dict]:
    "Encoder with a single map, the two layers on its cells (fc6, fc7), and mean and standard deviation of the input"
    if pretrained == 'encoder': pretrained = True
    hidden = scaled(4096 if encoder is None else 1024, width)
    def fc(c):
        layers = [nn.Linear(c*49, hidden), nn.Linear(hidden, hidden)]
        for m in layers:
            nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
            nn.init.zeros_(m.bias)
        return nn.Sequential(nn.Flatten(), *[o for m in layers for o in (m, nn.ReLU(inplace=True), nn.Dropout(ps))])
    if encoder is not None:
        enc,stats = detector_encoder(encoder, pretrained, n_in, stride)
        if pretrained: freeze_norms(enc)
        body = EncoderMap(enc)
        return body,fc(body.out_channels),stats
    if stride != 16: raise ValueError(f"stride: expected 16, that of VGG16's map, got {stride}; leave it out, or "
                                      "choose an `encoder`")
    body = VGG16Map(n_in, width)
    init_he(body)
    body.top = head = fc(body.out_channels)
    body.load(pretrained, fc=True)
    body.top = nn.Sequential()               # it belongs to the head, not to the encoder
    to_n_in = lambda o: list(o) if n_in == 3 else [sum(o)/3]*n_in
    return body,head,dict(image_mean=to_n_in(body.mean), image_std=to_n_in(body.std))

def predictor(hidden, n_out) -> FastRCNNPredictor:
    "torchvision's two layers for classes and boxes, initialized as in §3.1"
    res = FastRCNNPredictor(hidden, n_out+1)
    for m,std in ((res.cls_score, .01), (res.bbox_pred, .001)):
        nn.init.normal_(m.weight, std=std)
        nn.init.zeros_(m.bias)
    return res

# --- the net

class FastRCNN(Detector):
    "A map, a head on its cells, and torchvision's layers for classes and boxes; needs `proposals`"
    needs_proposals = True
    @checked_net(encoder=MODULE)
    def __init__(self,
        encoder:nn.Module,     # (b, c, h, w) -> one map; has the attribute `stride`
        head:nn.Module,        # (n, c, 7, 7) cells -> (n, hidden)
        hidden:int,            # features of the head
        n_out:int,             # classes without background
        pool:str='pool',       # pooling of the cells: 'pool' or 'align', see `RoICells`
        min_score:float=MIN_SCORE, # detections with a lower score are dropped
        max_dets:int=100,      # detections per image
        nms:float=.3,          # a detection is dropped if its IoU with a better one of its class is above this
        n_regions:int=64,      # regions per image to learn from
        foreground:float=.25,  # share of them that are objects, at most: regions with an IoU of 0.5 or more
        bg_iou:tuple=(.1, .5), # (low, high): background has its highest IoU in [low, high); see the module's docstring
    ):
        super().__init__()
        self.encoder,self.head,self.cells = encoder,head,RoICells(pool, encoder.stride)
        self.box_predictor = predictor(hidden, n_out)
        self.n_out,self.min_score,self.max_dets,self.nms = n_out,min_score,max_dets,nms
        self.n_regions,self.foreground,self.bg_iou = n_regions,foreground,bg_iou
        self.register_buffer('units', torch.tensor([.1, .1, .2, .2]), persistent=False)

    def losses_and_dets(self, x, targs, proposals):
        proposals,size = check_proposals(x, proposals),x.shape[-2:]
        maps = self.encoder(x)
        if self.training: return self.loss_parts(maps, proposals, targs),None
        dets = pad_dets([self.detect(m, p, size) for m,p in zip(maps, proposals)], size, self.max_dets)
        if targs is None: return None,dets
        with seeded(x.device): return self.loss_parts(maps, proposals, targs),dets

    def classify(self,
        maps:Tensor,            # (b, c, h, w) of the encoder
        regions:list[Tensor],   # per image (k, 4) pixels
    ) -> tuple[Tensor,Tensor]:  # of all n regions: (n, n_out+1) logits, class 0 is background; (n, n_out+1, 4) deltas
        "Class logits and box deltas of regions"
        logits,deltas = self.box_predictor(self.head(self.cells(maps, regions)))
        return logits.float(),deltas.float().unflatten(1, (self.n_out+1, 4))

    def detect(self,
        m:Tensor,               # (c, h, w) map of one image
        regions:Tensor,         # (k, 4) pixels
        size:tuple[int,int],    # (h, w) pixels of the image
    ) -> dict[str,Tensor]:      # as `nms_dets` returns them
        "Detections of one image; image by image, because 2000 regions each take much memory"
        logits,deltas = self.classify(m[None], [regions])
        refuse_nan((logits, deltas))
        bboxes = decode_bboxes(deltas[:,1:]*self.units, regions[:,None])
        return nms_dets(bboxes, logits.softmax(1)[:,1:], size, self.min_score, self.nms, self.max_dets)

    def loss_parts(self,
        maps:Tensor,              # (b, c, h, w) of the encoder
        proposals:list[Tensor],   # per image (k, 4) pixels
        targs:list[dict],         # per image, as `make_targets` returns them
    ) -> dict[str,Tensor]:
        "Losses by name; 0 where no region is left to learn from"
        regions,labels,bboxes = zip(*[self.sample_regions(p, t) for p,t in zip(proposals, targs)])
        logits,deltas = self.classify(maps, regions)
        regions,labels,bboxes = (torch.cat(o) for o in (regions, labels, bboxes))
        fg,n = labels > 0,max(len(labels), 1)
        want = encode_bboxes(bboxes[fg], regions[fg])/self.units
        # both are means over all regions, as in eq. 1
        return dict(loss_classifier=F.cross_entropy(logits, labels, reduction='sum')/n,
                    loss_box_reg=F.smooth_l1_loss(deltas[fg, labels[fg]], want, reduction='sum')/n)

    def sample_regions(self,
        proposals:Tensor,                # (k, 4) pixels of one image
        targ:dict[str,Tensor],           # of the image, as `make_targets` returns it
    ) -> tuple[Tensor,Tensor,Tensor]:    # (n, 4) regions; (n,) labels, 0 = background; (n, 4) ground truth of each
        "A random sample of regions to learn from"
        on = targ['labels'] > 0
        regions = torch.cat([proposals, targ['boxes'][on]])
        # a box without area comes last, so that there is one in each image
        bboxes,labels = F.pad(targ['boxes'][on], (0, 0, 0, 1)),F.pad(targ['labels'][on], (0, 1))
        iou,nearest   = iou_matrix.unchecked(regions, bboxes).max(1)
        fg = iou >= .5
        bg = ~fg & (iou < self.bg_iou[1]) & ~on_ignored(regions, fg, targ['boxes'][~on])
        n_fg = min(round(self.n_regions*self.foreground), int(fg.sum()))
        n_bg = min(self.n_regions - n_fg, int(bg.sum()))
        rank = torch.rand(len(regions), device=regions.device)
        easy = iou < self.bg_iou[0]                                        # these come after all others
        at   = torch.cat([rank.masked_fill(~fg, 9).argsort()[:n_fg],
                          (rank + easy).masked_fill(~bg, 9).argsort()[:n_bg]])
        return regions[at],labels[nearest[at]]*fg[at],bboxes[nearest[at]]

@register('detection', kw=dict(encoder='test_resnet', width=.06), n_params=134_690_729)
@checked_net()
def fast_rcnn(
    n_out:int,           # classes without background
    n_in:int=3,          # channels of the images
    width:float=1.,      # factor of the channels; 1 = 64 to 512 in VGG16, 4096 in fc6 and fc7 (1024 with an `encoder`)
    pretrained=False,    # True: torchvision's VGG16 with its classifier's layers as fc6 and fc7, or the weights of
                         # `encoder`, whose BatchNorm is then fixed; or the path of a local state dict of either
    encoder=None,        # as for `create_encoder`; None (default): VGG16
    stride:int=16,       # of the map of `encoder`; 32 for its last map, 8 for small images
    ps:float=.5,         # dropout after fc6 and fc7
    **kwargs,            # arguments of `FastRCNN`: `pool`, `min_score`, `max_dets`, `nms`, ...
) -> FastRCNN:
    """The Fast R-CNN of the paper (model L), on VGG16 or any encoder; it has as many parameters as the released net.
    Raises `ValueError` for another stride than 16 without `encoder`"""
    body,head,stats = map_and_head(encoder, pretrained, n_in, width, stride, ps)
    net = FastRCNN(body, head, head[-3].out_features, n_out, **kwargs)
    net.mean,net.std = stats['image_mean'],stats['image_std']
    return net
