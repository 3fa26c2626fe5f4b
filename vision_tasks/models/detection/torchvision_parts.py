"""Subclasses of the parts of torchvision's detectors, which compute what torchvision computes, but for this:
- An anchor or proposal on an ignored object is neither object nor background (`on_ignored`).
- An image without objects trains the background of SSD too; torchvision's loss for it is exactly 0.
- A batch without anything to learn from has a loss of 0, not nan.
- Masks stay as the net predicts them, 28 x 28 probabilities per box; `paste_rle` rasterizes them.
- The mask head learns from targets at the object's true place (`mask_targets`); torchvision's are half a pixel off. The
  COCO weights were trained with those, so their masks lie half a pixel of the network's input too far left and up until
  they are fine-tuned (pasted by torchvision they would be off by more, see the benchmark `mask_alignment.py`).
- Under autocast, feature maps, logits and boxes are float32: bfloat16 cannot represent all coordinates above 256"""
from __future__ import annotations
from contextlib import ExitStack, contextmanager
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import roi_align
from .base import on_ignored
from ..layers import refuse_nan, zero_loss
from ...ops.boxes import iou_matrix

__all__ = []

# --- subclasses: the parts of a net become these by `__class__`, and keep their weights and settings

class DetectorTransform(GeneralizedRCNNTransform):
    "Normalizes and pads; moves the boxes of ignored objects to the key `ignored` of the targets"
    resizes = False

    def resize(self, image, target=None):
        if not self.resizes: return image,target   # `_skip_resize` is for training
        masks = target and target.get('masks')
        image,target = super().resize(image, target)
        # torchvision's 'nearest' samples the corner of each new pixel, which is half a pixel off
        if masks is not None:
            target['masks'] = F.interpolate(masks[:,None], image.shape[-2:], mode='nearest-exact')[:,0]
        return image,target

    def forward(self, images, targets=None):
        images,targets = super().forward(images, targets)
        return images,targets and [
            {**{k: v[t['labels'] > 0] for k,v in t.items()}, 'ignored': t['boxes'][t['labels'] < 0]} for t in targets]

    def postprocess(self, result, image_shapes, original_image_sizes):
        masks = [r.pop('masks', None) for r in result]        # which super would paste
        result = super().postprocess(result, image_shapes, original_image_sizes)
        return [r if m is None else {**r, 'masks': m} for r,m in zip(result, masks)]

class RPN(RegionProposalNetwork):
    "Proposals; anchors on ignored objects are neither object nor background"
    # what torchvision's `box_iou` gives, in less time; a property, because torchvision sets an attribute
    box_similarity = property(lambda self: iou_matrix.unchecked)

    def assign_targets_to_anchors(self, anchors, targets):
        labels,boxes = super().assign_targets_to_anchors(anchors, targets)
        for l,a,t in zip(labels, anchors, targets):
            if len(t['ignored']): l[on_ignored(a, l != 0, t['ignored'])] = -1
        return labels,boxes

    def compute_loss(self, objectness, deltas, labels, targets):
        if any((l >= 0).any() for l in labels): return super().compute_loss(objectness, deltas, labels, targets)
        return zero_loss([objectness]),zero_loss([deltas])

def mask_targets(
    masks:Tensor,   # (n, h, w) 0 and 1
    boxes:Tensor,   # (k, 4) pixels
    idxs:Tensor,    # (k,) index of the mask of each box
    size:int,       # height and width of the targets
) -> Tensor:        # (k, size, size) in [0, 1]
    """Targets of the mask head: each mask, cropped to its box. torchvision's `project_masks_on_boxes` does not pass
    `aligned`, so in its targets the object is half a pixel too far left and up"""
    rois = torch.cat([idxs[:,None].to(boxes), boxes], 1)
    return roi_align(masks[:,None].to(boxes), rois, size, aligned=True)[:,0]

class _RoIHeads(RoIHeads):
    def forward(self, features, proposals, image_shapes, targets=None):
        if self.training:
            proposals = [p[~self._on_ignored(p, t)] if len(t['ignored']) else p for p,t in zip(proposals, targets)]
            if not any(len(p) + len(t['boxes']) for p,t in zip(proposals, targets)):
                nil = zero_loss(self.parameters())
                names = ['loss_classifier', 'loss_box_reg'] + ['loss_mask']*self.has_mask()
                return [],{k: nil for k in names}
        with self._boxes_alone(): found,losses = super().forward(features, proposals, image_shapes, targets)
        if not self.has_mask(): return found,losses
        if self.training: return found,{**losses, 'loss_mask': self._mask_loss(features, image_shapes, targets)}
        logits = self._mask_logits(features, [o['boxes'] for o in found], image_shapes)
        for o,p in zip(found, maskrcnn_inference(logits, [o['labels'] for o in found])): o['masks'] = p
        return found,losses

    @contextmanager
    def _boxes_alone(self):
        "Context in which `forward` of torchvision skips the masks"
        pool,self.mask_roi_pool = self.mask_roi_pool,None
        try: yield
        finally: self.mask_roi_pool = pool

    def select_training_samples(self, proposals, targets):
        self.samples = super().select_training_samples(proposals, targets)
        return self.samples

    def _mask_logits(self, features, boxes, image_shapes):
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))

    def _mask_loss(self, features, image_shapes, targets):
        "`maskrcnn_loss` of torchvision, with `mask_targets`"
        (boxes,idxs,labels,_),self.samples = self.samples,None
        on = [l > 0 for l in labels]
        boxes,idxs,labels = ([o[k] for o,k in zip(os, on)] for os in (boxes, idxs, labels))
        logits,labels = self._mask_logits(features, boxes, image_shapes),torch.cat(labels)
        if not len(labels): return 0*logits.sum()
        size  = logits.shape[-1]
        targs = torch.cat([mask_targets(t['masks'], b, i, size) for t,b,i in zip(targets, boxes, idxs)])
        each  = torch.arange(len(labels), device=labels.device)
        return F.binary_cross_entropy_with_logits(logits[each, labels], targs)

    def _on_ignored(self, proposals, target):
        matched = (iou_matrix.unchecked(proposals, target['boxes']) >= self.proposal_matcher.high_threshold).any(1)
        return on_ignored(proposals, matched, target['ignored'])

class _Silences:
    """Replaces the logits of anchors on ignored objects by a certain background, so that they add no loss and no
    gradient, and are no hard negatives"""
    def silenced(self, targets, outputs, anchors, matches):
        if not any(len(t['ignored']) for t in targets): return outputs
        idle = torch.stack([on_ignored(a, m >= 0, t['ignored']) for m,a,t in zip(matches, anchors, targets)])
        logits = outputs['cls_logits']
        certain = self.background_logits(logits.shape[-1]).to(logits)
        return {**outputs, 'cls_logits': torch.where(idle[...,None], certain, logits)}

    def background_logits(self, n): return torch.full((n,), -100.)   # for a sigmoid; the loss of -inf would be nan

    def compute_loss(self, targets, outputs, anchors, matches):
        return super().compute_loss(targets, self.silenced(targets, outputs, anchors, matches), anchors, matches)

class _RetinaNetHead(_Silences, RetinaNetHead): pass
class _FCOSHead(_Silences, FCOSHead): pass

class _SSD(_Silences, SSD):
    def background_logits(self, n): return F.pad(super().background_logits(n-1), (1, 0))   # softmax: background first

    def compute_loss(self, targets, outputs, anchors, matches):
        parts = super().compute_loss(targets, outputs, anchors, matches)
        bare  = [i for i,m in enumerate(matches) if not (m >= 0).any()]
        if not bare: return parts
        # an image without objects gets as many hard negatives, and the same weight, as an image with a single match
        logits = self.silenced(targets, outputs, anchors, matches)['cls_logits'][bare]
        loss   = -logits.log_softmax(-1)[...,0]
        hard   = loss.topk(min(max(round(self.neg_to_pos_ratio), 1), loss.shape[1]), 1).values
        n      = sum((m >= 0).sum() for m in matches) + len(bare)
        return {**parts, 'classification': parts['classification'] + hard.sum()/n}

OURS = {GeneralizedRCNNTransform: DetectorTransform, RegionProposalNetwork: RPN, RoIHeads: _RoIHeads, SSD: _SSD,
        RetinaNetHead: _RetinaNetHead, FCOSHead: _FCOSHead}

# --- hooks

def float32_hook(module, args, out):
    "Forward hook: converts the outputs of `module` under autocast to float32"
    if isinstance(out, Tensor):
        short = out.dtype in (torch.float16, torch.bfloat16)
        return out.float() if short and torch.is_autocast_enabled(out.device.type) else out
    if isinstance(out, dict):   return type(out)((k, float32_hook(module, args, o)) for k,o in out.items())
    return type(out)(float32_hook(module, args, o) for o in out)

def not_nan_hook(module, args, out):
    "Forward hook: raises `ValueError` for nan in eval mode, before a threshold on scores drops it"
    if not module.training: refuse_nan(out)

# --- one pass for losses and detections

class _Once(nn.Module):
    "Wrapper that runs `module` at the first call and returns the same output at all later calls"
    def __init__(self, module):
        super().__init__()
        self.module,self.output = module,None

    def forward(self, *args):
        if self.output is None: self.output = self.module(*args)
        return self.output

    def __getattr__(self, k):
        try: return super().__getattr__(k)
        except AttributeError: return getattr(super().__getattr__('module'), k)

@contextmanager
def run_once(*places):
    "Context in which the children at `places`, pairs (parent, name), run once"
    kept = [(p, k, p._modules[k]) for p,k in places]
    try:
        for p,k,m in kept: p._modules[k] = _Once(m)
        yield
    finally:
        for p,k,m in kept: p._modules[k] = m

@contextmanager
def in_training(*modules):
    "Context in which `modules` are in training mode, but not their children: BatchNorm and dropout stay in eval mode"
    try:
        for m in modules: m.training = True
        yield
    finally:
        for m in modules: m.training = False

@contextmanager
def seeded(device):
    "Context with a fixed seed on the CPU and on `device`, which restores their random states at the end"
    mod = getattr(torch, device.type, None)                 # torch.cuda, torch.mps, torch.xpu, ...
    own = hasattr(mod, 'get_rng_state')                     # whether it has its own generator; torch.cpu has none
    idx = device.index or 0
    with ExitStack() as after:
        after.enter_context(torch.random.fork_rng([idx] if own else [], device_type=device.type if own else 'cpu'))
        torch.default_generator.manual_seed(0)
        if own:
            if hasattr(mod, 'device'): after.enter_context(mod.device(idx))   # `manual_seed` is for this one
            mod.manual_seed(0)
        yield
