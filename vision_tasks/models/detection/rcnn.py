"""R-CNN: every proposed region is cropped, warped to one size and classified in a forward pass of its own; linear SVMs
classify its features and ridge regression refines the boxes (Girshick et al., 2013, arXiv:1311.2524). Three stages:
`forward` in training mode fine-tunes the net with a softmax; then `fit_stages` fits SVMs and box regression to its
features. As in the released code:
- The ground truth boxes are among the regions, so that images without proposals are used too.
- Features are scaled to a mean norm of 20 for SVMs and boxes; the SVMs' bias has a scale of 10, positives a weight of
  2.
What differs:
- AlexNet is torchvision's, without groups and local response normalization.
- Boxes are regressed from the same features as the SVMs', fc7; in the paper from pool5.
- The second fit of the SVMs uses the hard negatives of all images at once; the released code adds them one by one.
- The box regression has an unpenalized intercept: features and targets are centered.
- A score is the sigmoid of an SVM's margin, so that it is in [0, 1]; the order, and so AP, is that of the margins.
- A region on an ignored object is excluded (`on_ignored`)."""
from __future__ import annotations
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ..alexnet import AlexNet
from .base import MIN_SCORE, Detector, check_proposals, decode_bboxes, encode_bboxes, nms_dets, on_ignored, pad_dets
from .rcnn_stages import HardestRows, linear_svm, ridge_regression
from .torchvision_parts import seeded
from .windows import as_rois, label_windows, mean_std, pick_windows, warp_regions, window_encoder, window_loss
from ..kinds import MODULE, checked_net
from ..layers import refuse_nan, zero_loss
from ..registry import register
from ...ops.boxes import iou_matrix
from ...warning import warn

__all__ = ['RCNN', 'rcnn']

@contextmanager
def _evaluating(net):
    "Context with all modules of `net` in eval mode; restores the mode of each at the end"
    modes = {m: m.training for m in net.modules()}
    try: yield net.eval()
    finally:
        for m,t in modes.items(): m.training = t

class RCNN(Detector):
    """A net for windows, with a classifier, SVMs and box regression on its features; needs `proposals`. Before
    `fit_stages`, and after further training, scores are those of the softmax and boxes are the proposals"""
    needs_proposals = True
    @checked_net(encoder=MODULE)
    def __init__(self,
        encoder:nn.Module,     # (n, c, crop, crop) -> (n, d) features
        d:int,                 # features of a window
        n_out:int,             # classes without background
        crop:int=227,          # height and width in pixels to which regions are warped
        context:int=16,        # pixels of the crop, on each side, that show the surroundings of the region
        min_score:float=MIN_SCORE, # detections with a lower score are dropped
        max_dets:int=100,      # detections per image
        nms:float=.3,          # a detection is dropped if its IoU with a better one of its class is above this
        n_windows:tuple=(32, 96),  # windows per batch to learn from, at most: objects (IoU >= 0.5) and background
        chunk:int=128,         # windows in memory at a time; in training mode all
    ):
        super().__init__()
        if crop <= 2*context:
            raise ValueError(f"a crop has context on both sides of the region: crop={crop} with context={context} "
                             "leaves no pixel for the region; use less context")
        self.encoder,self.classifier = encoder,nn.Linear(d, n_out+1)
        nn.init.normal_(self.classifier.weight, std=.01)
        nn.init.zeros_(self.classifier.bias)
        self.d,self.n_out,self.crop,self.context,self.n_windows,self.chunk = d,n_out,crop,context,n_windows,chunk
        self.min_score,self.max_dets,self.nms = min_score,max_dets,nms
        for k,n in (('svm', n_out), ('box', n_out*4)):
            self.register_buffer(f'{k}_weight', torch.zeros(n, d))
            self.register_buffer(f'{k}_bias', torch.zeros(n))
        self.register_buffer('fitted', torch.tensor(False))     # whether these four buffers are

    def features(self,
        x:Tensor,               # (b, c, h, w)
        regions:list[Tensor],   # per image (n, 4) pixels
    ) -> Tensor:                # (all n, d)
        "Features of regions"
        rois = as_rois(regions)
        if not len(rois): return x.new_zeros(0, self.d)
        some = rois.split(len(rois) if self.training else self.chunk)
        return torch.cat([self.encoder(warp_regions(x, o, self.crop, self.context)) for o in some])

    def losses_and_dets(self, x, targs, proposals):
        proposals,size = check_proposals(x, proposals),x.shape[-2:]
        if self.training:
            self.fitted.fill_(False)                            # the features are about to change
            regions,labels = self.label_regions(proposals, targs)
            keep = pick_windows(torch.cat(labels), *self.n_windows)
            regions = [r[k] for r,k in zip(regions, keep.split([len(r) for r in regions]))]
            return dict(classifier=window_loss(self, x, regions, torch.cat(labels)[keep])),None
        regions,labels = (proposals, None) if targs is None else self.label_regions(proposals, targs)
        found,logits = [],[]
        for i,(r,p) in enumerate(zip(regions, proposals)):
            feats = self.features(x[i:i+1], [r]).float()
            logits.append(self.classifier(feats).float())
            refuse_nan((feats, logits[-1]))
            found.append(self.detect(feats[:len(p)], logits[-1][:len(p)], p, size))
        dets = pad_dets(found, size, self.max_dets)
        if targs is None: return None,dets
        logits,labels = torch.cat(logits),torch.cat(labels)
        with seeded(x.device): keep = pick_windows(labels, *self.n_windows)
        loss = F.cross_entropy(logits[keep], labels[keep]) if keep.sum() > 1 else zero_loss([logits]) # as in training
        return dict(classifier=loss),dets

    def label_regions(self,
        proposals:list[Tensor],             # per image (k, 4) pixels
        targs:list[dict],                   # per image, as `make_targets` returns them
    ) -> tuple[list[Tensor],list[Tensor]]:  # per image (n, 4) proposals, then ground truth boxes; (n,) classes, 0 =
                                            # background, -1 = excluded
        "Regions and their classes"
        regions = [torch.cat([p, t['boxes'][t['labels'] > 0]]) for p,t in zip(proposals, targs)]
        return regions,[label_windows(r, t) for r,t in zip(regions, targs)]

    def detect(self,
        feats:Tensor,            # (k, d)
        logits:Tensor,           # (k, n_out+1), class 0 is background
        regions:Tensor,          # (k, 4) pixels
        size:tuple[int,int],     # (h, w) pixels of the image
    ) -> dict[str,Tensor]:       # as `nms_dets` returns them
        "Detections of one image, by SVMs and box regression once `fit_stages` has run"
        if not self.fitted:
            return nms_dets(regions[:,None].expand(-1, self.n_out, -1), logits.softmax(1)[:,1:], size, self.min_score,
                            self.nms, self.max_dets)
        with torch.autocast(feats.device.type, enabled=False):     # margins in bfloat16 would have ties
            scores = F.linear(feats, self.svm_weight, self.svm_bias).sigmoid()
            deltas = F.linear(feats, self.box_weight, self.box_bias).unflatten(1, (self.n_out, 4))
        return nms_dets(decode_bboxes(deltas, regions[:,None]), scores, size, self.min_score, self.nms, self.max_dets)

    # --- stages 2 and 3

    @torch.no_grad()
    def fit_stages(self,
        batches:Iterable,        # of (x, bboxes, labels, proposals), as for `forward`; iterated twice
        C:float=1e-3,            # inverse strength of the SVMs' regularization
        ridge:float=1000.,       # penalty of the box regression
        n_start:int=2000,        # windows, negative for some class, for the first fit of the SVMs
        max_windows:int=2000,    # windows per class, of each kind: ground truth boxes, hard negatives, pairs for the
                                 # box regression. The hardest negatives are kept, and a random choice of the others.
                                 # Up to twice as many are in memory: 4 GB for 20 classes on AlexNet
        seed:int=0,              # of all random choices
        names:Sequence[str]=None, # class names for messages; None (default): 1, 2, ...
    ) -> dict[str,list[int]]:    # per class the number of windows: `positives`, `negatives` of the second round, the
                                 # `hard` ones among these, and `pairs`
        """Fit an SVM and a box regression per class to the features of the net as it is. A class without objects is
        never detected, and one warning names all such classes; a class without pairs keeps the proposals as boxes.
        Raises `ValueError` for an iterator, for batches without any feature above 0, and where a class has no negative
        window"""
        if iter(batches) is batches:
            raise ValueError("batches: expected a list or a DataLoader, since it is iterated twice, got an iterator")
        names = list(names or range(1, self.n_out+1))
        with _evaluating(self): return self._fit_stages(batches, C, ridge, n_start, max_windows, seed, names)

    def _fit_stages(self, batches, C, ridge, n_start, max_windows, seed, names):
        pos,pairs,start,scale = self._first_windows(batches, n_start, max_windows, seed)
        missing = [repr(names[c]) for c,o in enumerate(pos) if o is None]
        if missing: warn(f"no object of class {', '.join(missing)} in the batches: a class without any is never "
                         "detected")
        w,b = self._fit_svms(pos, [start[0][start[1][:,c] > 0] for c in range(self.n_out)], scale, C, names)
        negs,hard = self._hard_negatives(batches, start, w, b, pos, max_windows)
        w,b = self._fit_svms(pos, negs, scale, C, names)
        boxes = [self._fit_boxes(o, scale, ridge) for o in pairs]
        for buffer,o in ((self.svm_weight, w), (self.svm_bias, b), (self.box_weight, torch.cat([o for o,_ in boxes])),
                         (self.box_bias, torch.cat([o for _,o in boxes])), (self.fitted, torch.tensor(True))):
            buffer.copy_(o)
        count = lambda rows: [0 if o is None else len(o) for o in rows]
        return dict(positives=count(pos), negatives=count(negs), hard=count(hard),
                    pairs=[len((o or [()])[0]) for o in pairs])

    def _first_windows(self, batches, n_start, max_windows, seed):
        """The first round: by class the features of ground truth boxes (None without any) and the rows for the box
        regression; (features, negative for each class, index) of the windows to start with; the scale of features"""
        classes,gen = range(self.n_out),torch.Generator().manual_seed(seed)
        pos,pairs = ([HardestRows(max_windows) for _ in classes] for _ in range(2))
        start,norm,n = HardestRows(n_start),0.,0
        for feats,neg,true,pair,deltas in self.examples(batches):
            rank = torch.rand(len(feats), generator=gen)
            norm,n = norm + feats.norm(dim=1).double().sum().item(),n + len(feats)
            some,idxs = neg.any(1),n - len(feats) + torch.arange(len(feats))
            start.add(rank[some], feats[some], neg[some], idxs[some])
            for c in classes:
                for rows,k in ((pos, true == c+1), (pairs, pair == c+1)): rows[c].add(rank[k], feats[k], deltas[k])
        if not norm: raise ValueError("expected images with objects or proposals whose features are not all 0, got "
                                      "none, so there is nothing to fit; check `batches`, and whether the net has "
                                      "been trained")
        none = torch.zeros(0, self.d),torch.zeros(0, self.n_out),torch.zeros(0).long()
        return [(o.get() or [None])[0] for o in pos],[o.get() for o in pairs],start.get() or none,20*n/norm

    def _fit_svms(self, pos, negs, scale, C, names):
        "(n_out, d) weights and (n_out,) biases; -inf for a class without positives"
        w,b = torch.zeros(self.n_out, self.d),torch.full((self.n_out,), -torch.inf)
        for c in range(self.n_out):
            if pos[c] is None: continue
            if not len(negs[c]): raise ValueError(
                f"no window is a negative for class {names[c]!r}: each has an IoU of 0.3 or more with one of its "
                "objects; pass more proposals")
            w[c],b[c] = linear_svm(scale*pos[c], scale*negs[c], C)
        return scale*w,b

    def _hard_negatives(self, batches, start, w, b, pos, max_windows):
        """The second round: by class the features of all negatives and of the hard ones among them, whose margin is
        above -1"""
        feats,is_neg,idxs = start
        hard = [HardestRows(max_windows) for _ in range(self.n_out)]
        # Support vectors have a margin of -1, so that rounding decides whether they are hard. Both groups of a class
        # are chosen by the same margins: each window is then in exactly one of them
        margin_of,seen = torch.empty(len(feats), self.n_out),0
        for f,neg,*_ in self.examples(batches):
            margins = F.linear(f, w, b)
            here    = (idxs >= seen) & (idxs < seen + len(f))
            margin_of[here],seen = margins[idxs[here] - seen],seen + len(f)
            for c,rows in enumerate(hard):
                k = neg[:,c] & (margins[:,c] > -1)
                rows.add(margins[k,c], f[k])
        hard = [(o.get() or [feats[:0]])[0] for o in hard]
        easy = [feats[(is_neg[:,c] > 0) & ~(margin_of[:,c] > -1)] for c in range(self.n_out)]
        return [None if p is None else torch.cat([e, h]) for p,e,h in zip(pos, easy, hard)],hard

    def _fit_boxes(self, rows, scale, ridge):
        if not rows: return torch.zeros(4, self.d),torch.zeros(4)
        w,b = ridge_regression(scale*rows[0], rows[1], ridge)
        return scale*w,b

    def examples(self,
        batches:Iterable,   # as for `fit_stages`
    ) -> Iterator[tuple]:   # per image, on the CPU, of n windows: features (n, d); whether they are negatives of each
                            # class (n, n_out); class of which each is a ground truth box (n,), 0 = none; class of the
                            # object for the box regression (n,), 0 = none, and its deltas (n, 4)
        "Windows to fit SVMs and box regression to"
        device = self.svm_bias.device
        for batch in batches:
            x,b,labels,proposals = (o.as_subclass(Tensor).to(device) for o in batch)
            for i,(p,t) in enumerate(zip(check_proposals(x, proposals), self.make_targets(x, b, labels))):
                on = t['labels'] > 0
                bboxes,classes = t['boxes'][on],t['labels'][on]
                r   = torch.cat([p, bboxes])
                iou = iou_matrix.unchecked(r, bboxes)
                by_class = iou.new_zeros(len(r), self.n_out).scatter_reduce(1, (classes-1).expand_as(iou), iou, 'amax')
                match = by_class >= .3
                neg = ~match & ~on_ignored(r, match, t['boxes'][~on])
                (true,pair),deltas = torch.zeros(2, len(r), dtype=torch.long, device=device),torch.zeros_like(r)
                true[len(p):] = classes
                if len(p) and len(bboxes):
                    best,nearest = iou[:len(p)].max(1)
                    pair[:len(p)] = classes[nearest]*(best > .6)
                    deltas[:len(p)] = encode_bboxes(bboxes[nearest], p)
                feats = self.features(x[i:i+1], [r]).float()
                yield tuple(o.cpu() for o in (feats, neg, true, pair, deltas))

@register('detection', kw=dict(encoder='test_resnet', crop=48, context=4), n_params=57_089_877)
@checked_net()
def rcnn(
    n_out:int,           # classes without background
    n_in:int=3,          # channels of the images
    width:float=1.,      # factor of the channels; 1 = AlexNet's 64 to 384, and 4096 in fc6 and fc7
    pretrained=False,    # True: torchvision's ImageNet weights of AlexNet or of `encoder`; or the path of a local state
                         # dict. BatchNorm keeps learning: it sees a batch of many windows
    encoder=None,        # as for `create_encoder`, its last map is averaged; None (default): AlexNet
    crop:int=None,       # height and width in pixels to which regions are warped; None (default): 227 for AlexNet,
                         # otherwise the only size of `encoder`, or 224
    context:int=16,      # pixels of the crop, on each side, that show the surroundings of the region
    **kwargs,            # arguments of `RCNN`: `min_score`, `max_dets`, `nms`, `n_windows`, `chunk`
) -> RCNN:
    "The R-CNN of the paper, on AlexNet or any encoder. Raises `ValueError` for crops that the encoder cannot take"
    if encoder is None:
        body,crop = AlexNet(n_in, width),crop or 227
        if crop < body.least: raise ValueError(f"AlexNet takes crops of {body.least} pixels or more, got {crop}")
        body.load(pretrained == 'encoder' or pretrained)
    else: body,crop = window_encoder(encoder, pretrained, n_in, crop)
    net = RCNN(body, body.d, n_out, crop, context, **kwargs)
    net.mean,net.std = mean_std(body, n_in)
    return net
