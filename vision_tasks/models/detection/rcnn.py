"""R-CNN: every proposed region is cut out, warped to one size and classified by a net of its own pass; linear SVMs tell
the classes apart and ridge regression mends the boxes (Girshick et al., 2013, arXiv:1311.2524). Three stages: `forward`
in training mode fine-tunes the net with a softmax; then `fit_stages` fits SVMs and boxes to its features. As in the
released code:
- The true boxes are among the regions, so that a picture without proposals teaches too.
- Features are scaled to a mean norm of 20 for SVMs and boxes; the SVMs' bias counts 10, a positive 2.
What differs:
- AlexNet is torchvision's, without groups and local response normalisation.
- Boxes are regressed from the features that the SVMs see, fc7; the paper's from pool5.
- The second fit of the SVMs takes the hard negatives of all pictures at once; the released code adds them as they come.
- The intercept of the box regression is free: features and targets are centred in its stead.
- A score is the sigmoid of an SVM's margin, so that it lies in [0, 1]; their order, and AP, are those of the margins.
- A region that lies by half of its area on an ignored object, and matches no true one, is no background."""
from __future__ import annotations
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou
from ..alexnet import AlexNet
from .base import MIN_SCORE, Detector, check_proposals, decode_bboxes, encode_bboxes, nms_dets, on_ignored, pad_dets
from .rcnn_stages import HardestRows, linear_svm, ridge_regression
from .torchvision_parts import seeded
from .windows import as_rois, label_windows, mean_std, pick_windows, warp_regions, window_encoder, window_loss
from ..kinds import MODULE, checked_net
from ..layers import refuse_nan, zero_loss
from ..registry import register
from ...warning import warn

__all__ = ['RCNN', 'rcnn']

@contextmanager
def _evaluating(net):
    "All modules of `net` in eval mode, and then as they were, each by itself"
    modes = {m: m.training for m in net.modules()}
    try: yield net.eval()
    finally:
        for m,t in modes.items(): m.training = t

# --- the net

class RCNN(Detector):
    """A net for windows, and a classifier, SVMs and boxes on its features; they need `proposals`. Until `fit_stages`
    has run, and as soon as the net has learnt on, regions score by the softmax and boxes are the proposals"""
    needs_proposals = True
    @checked_net(encoder=MODULE)
    def __init__(self,
        encoder:nn.Module,     # (n, c, crop, crop) -> (n, d) features
        d:int,                 # features
        n_out:int,             # classes without background
        crop:int=227,          # side in pixels to which regions are warped
        context:int=16,        # pixels of it, on each side, that show what is around the region
        min_score:float=MIN_SCORE, # detections that score less are dropped
        max_dets:int=100,      # a picture
        nms:float=.3,          # IoU above which the worse of two boxes of a class goes
        n_windows:tuple=(32, 96),  # of a batch to learn from, at most: objects (IoU of .5 or more) and background
        chunk:int=128,         # windows in memory at a time, unless their gradients are wanted
    ):
        super().__init__()
        if crop <= 2*context:
            raise ValueError(f"a crop has context on both sides of the region; crop={crop} with context={context} "
                             "leaves nothing of it: take less context")
        self.encoder,self.classifier = encoder,nn.Linear(d, n_out+1)
        nn.init.normal_(self.classifier.weight, std=.01)
        nn.init.zeros_(self.classifier.bias)
        self.d,self.n_out,self.crop,self.context,self.n_windows,self.chunk = d,n_out,crop,context,n_windows,chunk
        self.min_score,self.max_dets,self.nms = min_score,max_dets,nms
        for k,n in (('svm', n_out), ('box', n_out*4)):
            self.register_buffer(f'{k}_weight', torch.zeros(n, d))
            self.register_buffer(f'{k}_bias', torch.zeros(n))
        self.register_buffer('fitted', torch.tensor(False))     # whether these four are

    def features(self, x, regions) -> Tensor: # b times (n, 4) -> (all n, d)
        rois = as_rois(regions)
        if not len(rois): return x.new_zeros(0, self.d)
        some = rois.split(len(rois) if self.training else self.chunk)
        return torch.cat([self.encoder(warp_regions(x, o, self.crop, self.context)) for o in some])

    def losses_and_dets(self, x, targs, proposals):
        proposals,size = check_proposals(x, proposals),x.shape[-2:]
        if self.training:
            self.fitted.fill_(False)                            # to features that are about to change
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

    def label_regions(self, proposals, targs) -> tuple[list[Tensor],list[Tensor]]:
        "Of each picture proposals and true boxes, (n, 4); their classes (n,), 0 = background, -1 = on an ignored one"
        regions = [torch.cat([p, t['boxes'][t['labels'] > 0]]) for p,t in zip(proposals, targs)]
        return regions,[label_windows(r, t) for r,t in zip(regions, targs)]

    def detect(self, feats, logits, regions, size) -> dict[str,Tensor]: # (k, d), (k, n_out+1), (k, 4)
        if not self.fitted:
            return nms_dets(regions[:,None].expand(-1, self.n_out, -1), logits.softmax(1)[:,1:], size, self.min_score,
                            self.nms, self.max_dets)
        with torch.autocast(feats.device.type, enabled=False):     # 8 bits would make ties of margins
            scores = F.linear(feats, self.svm_weight, self.svm_bias).sigmoid()
            deltas = F.linear(feats, self.box_weight, self.box_bias).unflatten(1, (self.n_out, 4))
        return nms_dets(decode_bboxes(deltas, regions[:,None]), scores, size, self.min_score, self.nms, self.max_dets)

    # --- stages 2 and 3

    @torch.no_grad()
    def fit_stages(self,
        batches:Iterable,        # of (x, bboxes, labels, proposals), as `forward` takes them; it is gone through twice
        C:float=1e-3,            # of the SVMs
        ridge:float=1000.,       # of the box regression
        n_start:int=2000,        # windows, negative for some class, with which the SVMs begin
        max_windows:int=2000,    # a class, of each kind: true boxes, hard negatives, pairs for the box regression.
                                 # The hardest negatives are kept, of the others a random choice; while they come in,
                                 # up to twice as many: 4 GB for 20 classes on AlexNet, if all of these are full
        seed:int=0,              # of all choices
        names:Sequence[str]=None, # of the classes, for what it has to tell; None: 1, 2, ...
    ) -> dict[str,list[int]]:    # by class, how many windows were fitted to: `positives`, `negatives` in the second
                                 # round, the `hard` ones among these, and `pairs`
        """Fit an SVM and a box regression a class to the features of the net as it is. A class without objects never
        scores, and one warning names it; one without pairs keeps the proposals"""
        if iter(batches) is batches:
            raise ValueError("batches is gone through twice, which an iterator is not for; give a list or a DataLoader")
        names = list(names or range(1, self.n_out+1))
        with _evaluating(self): return self._fit_stages(batches, C, ridge, n_start, max_windows, seed, names)

    def _fit_stages(self, batches, C, ridge, n_start, max_windows, seed, names):
        classes,gen = range(self.n_out),torch.Generator().manual_seed(seed)
        pos,pairs,hard = ([HardestRows(max_windows) for _ in classes] for _ in range(3))
        start,norm,n = HardestRows(n_start),0.,0
        for feats,neg,true,pair,deltas in self.examples(batches):
            lot  = torch.rand(len(feats), generator=gen)
            norm,n = norm + feats.norm(dim=1).double().sum().item(),n + len(feats)
            some,idxs = neg.any(1),n - len(feats) + torch.arange(len(feats))
            start.add(lot[some], feats[some], neg[some], idxs[some])
            for c in classes:
                for rows,k in ((pos, true == c+1), (pairs, pair == c+1)): rows[c].add(lot[k], feats[k], deltas[k])
        if not norm: raise ValueError("no picture has an object or a proposal with features that are not all 0, so "
                                      "there is nothing to fit; look at what `batches` gives, and whether the net "
                                      "has learnt")
        scale = 20*n/norm
        pos = [(o.get() or [None])[0] for o in pos]
        start,is_neg,idxs = start.get() or (torch.zeros(0, self.d), torch.zeros(0, self.n_out), torch.zeros(0).long())
        missing = [repr(names[c]) for c in classes if pos[c] is None]
        if missing: warn(f"no object of class {', '.join(missing)} came: a class without any is "
                         "never detected")
        def svms(negs):
            w,b = torch.zeros(self.n_out, self.d),torch.full((self.n_out,), -torch.inf)      # which never scores
            for c in classes:
                if pos[c] is None: continue
                if not len(negs[c]): raise ValueError(
                    f"no window is a negative for class {names[c]!r}: each overlaps with an object of it by an IoU of "
                    ".3 or more; give more proposals")
                w[c],b[c] = linear_svm(scale*pos[c], scale*negs[c], C)
            return scale*w,b
        begin = [start[is_neg[:,c] > 0] for c in classes]
        w,b = svms(begin)
        # Support vectors lie on the margin of -1, so rounding decides on which side. Both groups of a class are chosen
        # by the same margins: each window is then in exactly one of them
        margin_of,seen = torch.empty(len(start), self.n_out),0
        for feats,neg,*_ in self.examples(batches):
            margins = F.linear(feats, w, b)
            here    = (idxs >= seen) & (idxs < seen + len(feats))
            margin_of[here],seen = margins[idxs[here] - seen],seen + len(feats)
            for c in classes:
                k = neg[:,c] & (margins[:,c] > -1)
                hard[c].add(margins[k,c], feats[k])
        hard  = [(o.get() or [begin[0][:0]])[0] for o in hard]
        easy  = [start[(is_neg[:,c] > 0) & ~(margin_of[:,c] > -1)] for c in classes]
        negs  = [None if pos[c] is None else torch.cat([easy[c], hard[c]]) for c in classes]
        w,b   = svms(negs)
        boxes = [self._fit_boxes(o.get(), scale, ridge) for o in pairs]
        for buffer,o in ((self.svm_weight, w), (self.svm_bias, b), (self.box_weight, torch.cat([o for o,_ in boxes])),
                         (self.box_bias, torch.cat([o for _,o in boxes])), (self.fitted, torch.tensor(True))):
            buffer.copy_(o)
        count = lambda rows: [0 if o is None else len(o) for o in rows]
        return dict(positives=count(pos), negatives=count(negs), hard=count(hard),
                    pairs=[len((o.get() or [()])[0]) for o in pairs])

    def _fit_boxes(self, rows, scale, ridge):
        if not rows: return torch.zeros(4, self.d),torch.zeros(4)
        w,b = ridge_regression(scale*rows[0], rows[1], ridge)
        return scale*w,b

    def examples(self, batches) -> Iterator[tuple]:
        """Of each picture, on the CPU, all windows' features (n, d); whether they are negatives for each class
        (n, n_out); the class of which each is a true box (n,), 0 = none; the class whose boxes it helps to regress
        (n,), and what to (n, 4)"""
        device = self.svm_bias.device
        for batch in batches:
            x,bboxes,labels,proposals = (o.as_subclass(Tensor).to(device) for o in batch)
            for i,(p,t) in enumerate(zip(check_proposals(x, proposals), self.make_targets(x, bboxes, labels))):
                on = t['labels'] > 0
                truth,classes = t['boxes'][on],t['labels'][on]
                r   = torch.cat([p, truth])
                iou = box_iou(r, truth)
                by_class = iou.new_zeros(len(r), self.n_out).scatter_reduce(1, (classes-1).expand_as(iou), iou, 'amax')
                match = by_class >= .3
                neg = ~match & ~on_ignored(r, match, t['boxes'][~on])
                (true,pair),deltas = torch.zeros(2, len(r), dtype=torch.long, device=device),torch.zeros_like(r)
                true[len(p):] = classes
                if len(p) and len(truth):
                    best,nearest = iou[:len(p)].max(1)
                    pair[:len(p)] = classes[nearest]*(best > .6)
                    deltas[:len(p)] = encode_bboxes(truth[nearest], p)
                feats = self.features(x[i:i+1], [r]).float()
                yield tuple(o.cpu() for o in (feats, neg, true, pair, deltas))

@register('detection', kw=dict(encoder='test_resnet', crop=48, context=4), n_params=57_089_877)
@checked_net()
def rcnn(
    n_out:int,
    n_in:int=3,
    width:float=1.,      # 1 = AlexNet's 64 to 384 channels, and 4096 in fc6 and fc7
    pretrained=False,    # True: torchvision's weights of ImageNet, or the path of a local state dict; of AlexNet or of
                         # `encoder`. BatchNorm learns on: it sees a batch of many windows
    encoder=None,        # None = AlexNet, or what `create_encoder` takes: its last map is averaged
    crop:int=None,       # side in pixels to which regions are warped; None: 227 for AlexNet, else 224, or what
                         # `encoder` is made for
    context:int=16,      # pixels of it, on each side, that show what is around the region
    **kwargs,            # of `RCNN`: `min_score`, `max_dets`, `nms`, `n_windows`, `chunk`
) -> RCNN:
    "The R-CNN of the paper, on AlexNet or any encoder"
    if encoder is None:
        body,crop = AlexNet(n_in, width),crop or 227
        if crop < body.least: raise ValueError(f"AlexNet takes crops of {body.least} pixels or more, not {crop}")
        body.load(pretrained == 'encoder' or pretrained)
    else: body,crop = window_encoder(encoder, pretrained, n_in, crop)
    net = RCNN(body, body.d, n_out, crop, context, **kwargs)
    net.mean,net.std = mean_std(body, n_in)
    return net
