"""torchvision's detectors: Faster R-CNN (Ren et al., 2015, arXiv:1506.01497), SSD (Liu et al., 2015, arXiv:1512.02325),
RetinaNet (Lin et al., 2017, arXiv:1708.02002), FCOS (Tian et al., 2019, arXiv:1904.01355), SSDlite (Sandler et al.,
2018, arXiv:1801.04381), Mask R-CNN (He et al., 2017, arXiv:1703.06870), by name and on any encoder. They compute what
torchvision computes, but for this:
- Pictures come at the size that the DataLoaders give them and are not resized again, unless `resize=True`.
- An anchor or proposal that lies by half of its area on an ignored object, and matches no true one, is no background.
- A picture without objects teaches SSD background too: torchvision's loss of it is exactly 0.
- A batch without anything to learn from has a loss of 0, not nan.
- Detections from a score of `MIN_SCORE` on are kept, whichever the net.
- Masks stay as the net gives them, 28 x 28 probabilities to a box; `paste_rle` makes pixels of them.
- The mask head learns from targets that lie where the object is (`mask_targets`); torchvision's are half a pixel off.
  Its COCO weights were trained with those, so their masks come out half a pixel of the network's input too far left and
  up until they are fine-tuned (pasted by torchvision, they would fit worse still: `mask_alignment.py`).
- All parameters can learn; which do is up to the learner (`freeze`, `unfreeze`), not to `trainable_backbone_layers`.
  BatchNorm is as torchvision has it: fixed in pretrained encoders, but for _v2 and SSDlite.
- Under autocast features, logits and all about boxes are float32: coordinates above 256 are not integers in bfloat16"""
from __future__ import annotations
import math, re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
import torch, torchvision
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_builder, get_model_weights, list_models
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou, roi_align, roi_pool
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import _convert_to_roi_format, _setup_scales
from ...arguments import several, whole
from ..encoders import _read_weights, _set_n_in, create_encoder
from ..kinds import STRIDE, WITH_ENCODER, checked_net
from ..layers import refuse_nan, scaled, zero_loss
from ..registry import register
from .base import MIN_SCORE, Detector, lies_on, pad_dets

__all__ = ['TorchvisionDetector', 'torchvision_detector', 'default_anchors', 'faster_rcnn', 'mask_rcnn', 'retinanet',
           'fcos', 'ssdlite', 'MultiScaleRoIPool']

# --- torchvision's parts, with what they lack. The net's own parts become these, with their weights and settings

class _Transform(GeneralizedRCNNTransform):
    "Normalises and pads; sets ignored objects apart, as `ignored`"
    resizes = False

    def resize(self, image, target=None):
        if not self.resizes: return image,target   # `_skip_resize` is for training
        masks = target and target.get('masks')
        image,target = super().resize(image, target)
        # torchvision's 'nearest' takes the pixel at the corner of each new one, half a pixel off
        if masks is not None:
            target['masks'] = F.interpolate(masks[:,None], image.shape[-2:], mode='nearest-exact')[:,0]
        return image,target

    def forward(self, images, targets=None):
        images,targets = super().forward(images, targets)
        return images,targets and [
            {**{k: v[t['labels'] > 0] for k,v in t.items()}, 'ignored': t['boxes'][t['labels'] < 0]} for t in targets]

    def postprocess(self, result, image_shapes, original_image_sizes):
        masks = [r.pop('masks', None) for r in result]        # that super would paste
        result = super().postprocess(result, image_shapes, original_image_sizes)
        return [r if m is None else {**r, 'masks': m} for r,m in zip(result, masks)]

class _RPN(RegionProposalNetwork):
    def assign_targets_to_anchors(self, anchors, targets):
        labels,boxes = super().assign_targets_to_anchors(anchors, targets)
        for l,a,t in zip(labels, anchors, targets): l[(l == 0) & lies_on(a, t['ignored'])] = -1
        return labels,boxes

    def compute_loss(self, objectness, deltas, labels, targets):
        if any((l >= 0).any() for l in labels): return super().compute_loss(objectness, deltas, labels, targets)
        return zero_loss([objectness]),zero_loss([deltas])

def mask_targets(
    masks:Tensor,   # (n, h, w) 0 and 1
    boxes:Tensor,   # (k, 4) pixels
    idxs:Tensor,    # (k,) which mask belongs to each box
    size:int,       # of the target
) -> Tensor:        # (k, size, size) in [0, 1]
    """What the mask head shall predict: each mask inside its box. torchvision's `project_masks_on_boxes` leaves out
    `aligned`, so its targets show the object half a pixel too far left and up"""
    rois = torch.cat([idxs[:,None].to(boxes), boxes], 1)
    return roi_align(masks[:,None].to(boxes), rois, size, aligned=True)[:,0]

class _RoIHeads(RoIHeads):
    def forward(self, features, proposals, image_shapes, targets=None):
        if self.training:
            proposals = [p[~self._ignores(p, t)] for p,t in zip(proposals, targets)]
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
        "A while in which `forward` leaves the masks to us"
        pool,self.mask_roi_pool = self.mask_roi_pool,None
        try: yield
        finally: self.mask_roi_pool = pool

    def select_training_samples(self, proposals, targets):
        self.samples = super().select_training_samples(proposals, targets)
        return self.samples

    def _mask_logits(self, features, boxes, image_shapes):
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))

    def _mask_loss(self, features, image_shapes, targets):
        "As `maskrcnn_loss`, on targets that lie where the boxes are"
        (boxes,idxs,labels,_),self.samples = self.samples,None
        on = [l > 0 for l in labels]
        boxes,idxs,labels = ([o[k] for o,k in zip(os, on)] for os in (boxes, idxs, labels))
        logits,labels = self._mask_logits(features, boxes, image_shapes),torch.cat(labels)
        if not len(labels): return 0*logits.sum()
        size  = logits.shape[-1]
        targs = torch.cat([mask_targets(t['masks'], b, i, size) for t,b,i in zip(targets, boxes, idxs)])
        each  = torch.arange(len(labels), device=labels.device)
        return F.binary_cross_entropy_with_logits(logits[each, labels], targs)

    def _ignores(self, proposals, target):
        on = lies_on(proposals, target['ignored'])
        if not len(target['boxes']): return on
        return on & (box_iou(proposals, target['boxes']).amax(1) < self.proposal_matcher.high_threshold)

class _Silences:
    "Gives anchors on ignored objects logits that are sure of background: no loss, no gradient, no hard negative"
    def silenced(self, targets, outputs, anchors, matches):
        if not any(len(t['ignored']) for t in targets): return outputs
        idle = torch.stack([(m < 0) & lies_on(a, t['ignored']) for m,a,t in zip(matches, anchors, targets)])
        logits = outputs['cls_logits']
        return {**outputs, 'cls_logits': torch.where(idle[...,None], self.sure(logits.shape[-1]).to(logits), logits)}

    def sure(self, n): return torch.full((n,), -100.)          # by class, for a sigmoid; the loss of -inf would be nan

    def compute_loss(self, targets, outputs, anchors, matches):
        return super().compute_loss(targets, self.silenced(targets, outputs, anchors, matches), anchors, matches)

class _RetinaNetHead(_Silences, RetinaNetHead): pass
class _FCOSHead(_Silences, FCOSHead): pass

class _SSD(_Silences, SSD):
    def sure(self, n): return F.pad(super().sure(n-1), (1, 0)) # for a softmax, with background in front

    def compute_loss(self, targets, outputs, anchors, matches):
        parts = super().compute_loss(targets, outputs, anchors, matches)
        bare  = [i for i,m in enumerate(matches) if not (m >= 0).any()]
        if not bare: return parts
        # a picture without objects has as many hard negatives as one with a single match, and counts as that one
        logits = self.silenced(targets, outputs, anchors, matches)['cls_logits'][bare]
        loss   = -logits.log_softmax(-1)[...,0]
        hard   = loss.topk(min(max(round(self.neg_to_pos_ratio), 1), loss.shape[1]), 1).values
        n      = sum((m >= 0).sum() for m in matches) + len(bare)
        return {**parts, 'classification': parts['classification'] + hard.sum()/n}

_OURS = {GeneralizedRCNNTransform: _Transform, RegionProposalNetwork: _RPN, RoIHeads: _RoIHeads, SSD: _SSD,
         RetinaNetHead: _RetinaNetHead, FCOSHead: _FCOSHead}

def _float32(module, args, out):
    "Forward hook: what leaves `module` under autocast is float32"
    if isinstance(out, Tensor):
        short = out.dtype in (torch.float16, torch.bfloat16)
        return out.float() if short and torch.is_autocast_enabled(out.device.type) else out
    if isinstance(out, dict):   return type(out)((k, _float32(module, args, o)) for k,o in out.items())
    return type(out)(_float32(module, args, o) for o in out)

def _not_nan(module, args, out):
    "Forward hook: nan raises in eval, before a threshold on scores drops it"
    if not module.training: refuse_nan(out)

# --- one pass for losses and detections

class _Once(nn.Module):
    "`module`, which runs at the first call and gives the same answer at all later ones"
    def __init__(self, module):
        super().__init__()
        self.module,self.answer = module,None

    def forward(self, *args):
        if self.answer is None: self.answer = self.module(*args)
        return self.answer

    def __getattr__(self, k):
        try: return super().__getattr__(k)
        except AttributeError: return getattr(super().__getattr__('module'), k)

@contextmanager
def _once(*places):
    "Let the children at `places`, (parent, name), run once"
    kept = [(p, k, p._modules[k]) for p,k in places]
    try:
        for p,k,m in kept: p._modules[k] = _Once(m)
        yield
    finally:
        for p,k,m in kept: p._modules[k] = m

@contextmanager
def _training(*modules):
    "Let `modules`, but not what they contain, believe that they train: BatchNorm and dropout stay in eval"
    try:
        for m in modules: m.training = True
        yield
    finally:
        for m in modules: m.training = False

@contextmanager
def _seeded(device):
    "Random numbers of the CPU and of `device` that are the same each time; their generators are left as they were"
    mod = getattr(torch, device.type, None)                 # torch.cuda, torch.mps, torch.xpu, ...
    own = hasattr(mod, 'get_rng_state')                     # a generator of its own, which the CPU's module lacks
    idx = device.index or 0
    with ExitStack() as after:
        after.enter_context(torch.random.fork_rng([idx] if own else [], device_type=device.type if own else 'cpu'))
        torch.default_generator.manual_seed(0)
        if own:
            if hasattr(mod, 'device'): after.enter_context(mod.device(idx))   # whose generator `manual_seed` sets
            mod.manual_seed(0)
        yield

class TorchvisionDetector(Detector):
    "A net of `torchvision.models.detection` for a batch of pictures of any one size"
    @checked_net()
    def __init__(self,
        net:GeneralizedRCNN|RetinaNet|FCOS|SSD,   # what it lacks is mended in place; a part that is not torchvision's
                                 # own stays as it is, and takes what lies on ignored objects for background
        n_out:int,               # classes without background; the net has one more
        min_score:float=None,    # detections that score less are dropped; None: as the net has it
        max_dets:int=100,        # a picture
        resize:bool=False,       # whether the net resizes pictures as torchvision's (to `min_size` and `max_size`, SSD
                                 # to its own size); boxes are mapped back
    ):
        super().__init__()
        if not isinstance(net, (GeneralizedRCNN, RetinaNet, FCOS, SSD)):
            raise ValueError("net is a Faster or Mask R-CNN, RetinaNet, FCOS or SSD of torchvision, not a "
                             f"{type(net).__name__}; for nets of another kind write a `Detector`")
        self.net,self.n_out,self.max_dets = net,n_out,max_dets           # torchvision's names, so that its files fit
        for m in net.modules(): m.__class__ = _OURS.get(type(m), type(m))
        if not isinstance(net.transform, _Transform):
            raise ValueError("the net's transform is torchvision's GeneralizedRCNNTransform; a "
                             f"{type(net.transform).__name__} came: let the DataLoaders do what it does")
        net.requires_grad_(True)
        net.transform.resizes = resize
        last = net.roi_heads if self.two_stage else net
        last.detections_per_img = max_dets
        if min_score is not None: last.score_thresh = min_score
        heads = [net.rpn.head, last.box_predictor, last.mask_predictor] if self.two_stage else [net.head]
        for m in (net.backbone, *heads):
            if m is not None: m.register_forward_hook(_float32)
        for m in heads:
            if m is not None: m.register_forward_hook(_not_nan)

    normalizes = True

    @property
    def two_stage(self): return isinstance(self.net, GeneralizedRCNN)

    @property
    def min_score(self): return (self.net.roi_heads if self.two_stage else self.net).score_thresh

    @property
    def has_masks(self): return self.two_stage and self.net.roi_heads.has_mask()

    @property
    def encoder(self):
        body = self.net.backbone
        if hasattr(body, 'body'): return body.body                                      # under a pyramid
        if not isinstance(self.net, SSD): return body
        # VGG16's last stage is the beginning of the first extra block; the MobileNet's is in `features`
        vgg = isinstance(body.features[0], nn.Conv2d)
        return nn.ModuleList([body.features, *(body.extra[0][:-1] if vgg else [])])

    def losses_and_dets(self, x, targs, proposals):
        if proposals is not None:
            raise ValueError(f"{type(self.net).__name__} finds its own proposals; do not pass any")
        if self.has_masks and targs and 'masks' not in targs[0]:
            raise ValueError("this net learns masks, and bboxes came without: pass masks (b, n, h, w), or take a net "
                             "of `list_archs('detection')`")
        self._check_size(x)
        net,x = self.net,list(x)
        if self.training: return self._train(x, targs),None
        if targs is None: return None,self._pad(net(x), x)
        stages = (net.rpn, net.roi_heads) if self.two_stage else ()
        head   = net.rpn if self.two_stage else net
        with _once((net, 'transform'), (net, 'backbone'), (head, 'head'), (head, 'anchor_generator')):
            dets = self._pad(net(x, targs), x)
            with _training(net, *stages), _seeded(x[0].device): return net(x, targs),dets

    def _train(self, x, targs):
        try: return self.net(x, targs)
        except ValueError as e:
            if 'more than 1 value per channel' not in str(e): raise
            raise ValueError("this net normalises maps of 1 x 1 over the batch, so that it trains on batches of 2 "
                             f"pictures or more; {len(x)} came: raise bs, or drop the last batch") from e

    def _pad(self, found, x):
        dets = pad_dets(found, x[0].shape[-2:], self.max_dets)
        return (dets, _pad_masks(found, self.max_dets)) if self.has_masks else dets

    def _check_size(self, x):
        "SSD300's default boxes have fixed steps, which make sense for one size only"
        t,boxes = self.net.transform,getattr(self.net, 'anchor_generator', None)
        if t.resizes or getattr(boxes, 'steps', None) is None or x.shape[-2:] == t.fixed_size[::-1]: return
        w,h = t.fixed_size
        raise ValueError(f"this SSD takes pictures of {h} x {w} pixels, {x.shape[-2]} x {x.shape[-1]} came: make the "
                         f"DataLoaders with size={w}, or let the net resize them (`resize=True`)")

def _pad_masks(found, max_dets) -> Tensor:   # (b, max_dets, m, m), zeros behind the last
    "The masks of what `pad_dets` gives, in its order"
    masks = [d['masks'][d['labels'] > 0, 0][:max_dets] for d in found]
    return torch.stack([F.pad(m, (0, 0, 0, 0, 0, max_dets-len(m))) for m in masks])

# --- by name

def _known(arch) -> str:
    "The name of torchvision's builder `arch`; `ValueError` for what is none"
    names = [n for n in list_models(module=torchvision.models.detection) if 'keypoint' not in n]
    name  = arch if isinstance(arch, str) else getattr(arch, '__name__', None)
    if 'keypointrcnn' in str(name):
        raise ValueError("keypointrcnn_resnet50_fpn learns the key points of people besides boxes, which this task has "
                         "not: take fasterrcnn_resnet50_fpn for the boxes, or the task 'keypoint' for the points")
    if name not in names or not isinstance(arch, str) and get_model_builder(name) is not arch:
        raise ValueError(f"{arch!r} is no builder of torchvision.models.detection; those are {', '.join(names)}")
    return name

_CLASSES = dict(fasterrcnn=FasterRCNN, maskrcnn=MaskRCNN, retinanet=RetinaNet, fcos=FCOS, ssd300=SSD, ssdlite320=SSD)

def _check_kwargs(kwargs, *takers):
    "Raise for what torchvision would take without a word, and do nothing with"
    unknown = [k for k in kwargs if not any(k in signature(o).parameters for o in takers)]
    if unknown: raise TypeError(f"unexpected keyword argument {unknown[0]!r}, which torchvision's "
                                f"{takers[0].__name__} does not have")

def _min_score(min_score, kwargs):
    "`min_score`, `MIN_SCORE` for None; None where torchvision's own argument for it is among `kwargs`"
    own = [k for k in ('score_thresh', 'box_score_thresh') if k in kwargs]
    if min_score is None: return None if own else MIN_SCORE
    if own: raise ValueError(f"min_score={min_score} and {own[0]}={kwargs[own[0]]} are the same; pass one of them")
    return min_score

def _body(name) -> str: return re.search('resnet50|mobilenet_v3_large|vgg16', name)[0]

@checked_net(pretrained=WITH_ENCODER)
def torchvision_detector(
    arch:str|Callable,        # builder of `torchvision.models.detection`, or its name
    n_out:int,                # classes without background
    n_in:int=3,               # channels of the pictures
    pretrained=False,         # True: torchvision's COCO weights, but for the layers that tell classes, which are new;
                              # 'encoder': ImageNet's, of the encoder; or the path of a local state dict, of the encoder
                              # (for ssd300_vgg16 torchvision's IMAGENET1K_FEATURES) or of the whole detector
    min_score:float=None,     # detections that score less are dropped; None: `MIN_SCORE`, .01
    max_dets:int=100,         # a picture
    resize:bool=False,        # whether the net resizes as torchvision's (shorter side to 800 pixels, mostly)
    anchors:tuple=None,       # sizes by level in pixels, ratios, as many as the net has (`fit_anchors`,
                              # `default_anchors`); None: torchvision's, which are for pictures of about 800 pixels
    **kwargs,                 # of torchvision's builder
) -> TorchvisionDetector:
    "torchvision's detector for `n_out` classes"
    name = _known(arch)
    if 'trainable_backbone_layers' in kwargs:
        raise ValueError("trainable_backbone_layers is not taken: all layers can learn here, and the learner's "
                         "`freeze` and `unfreeze` say which do")
    _check_kwargs(kwargs, _CLASSES[name.partition('_')[0]], get_model_builder(name))
    build = partial(get_model, name, weights=None, num_classes=n_out+1, **kwargs)
    kind  = ('IMAGENET1K_FEATURES' if 'vgg16' in name else 'IMAGENET1K_V1') if pretrained == 'encoder' else None
    coco  = get_model_weights(name).DEFAULT
    try:
        net = build(weights_backbone=kind)
        sd  = coco.get_state_dict(progress=True, check_hash=True) if pretrained is True else None
    except OSError as e:
        raise OSError(f"the weights of {name} did not come ({e}); without a network, give `pretrained` the path of a "
                      f"local state dict of {name} or of {_body(name)}") from e
    if n_in != 3:
        _set_n_in(net.backbone, n_in, kind is not None)
        t = net.transform
        t.image_mean,t.image_std = ([sum(o)/len(o)]*n_in for o in (t.image_mean, t.image_std))
    if pretrained not in (False, True, 'encoder'): sd = _read_weights(Path(pretrained))
    if sd is not None:
        if not name.startswith('ssd') and not name.endswith('_v2'): _freeze_norms(net.backbone.body)
        if any(re.match(r'(module\.)?(net\.)?(rpn|head)\.', k) for k in sd): _load(net, sd, name, n_in, pretrained)
        else: _load_encoder(net, name, n_in, pretrained)
    if anchors is not None: _set_anchors(net, anchors)
    return TorchvisionDetector(net, n_out, _min_score(min_score, kwargs), max_dets, resize)

def _freeze_norms(body):
    "Fix all BatchNorm of `body`, in place"
    from timm.layers import freeze_batch_norm_2d
    freeze_batch_norm_2d(body)

def _load(net, sd, name, n_in, source):
    "Fill `net` from the state dict `sd` of a detector, but for the layers that tell classes where these are others"
    from timm.models import adapt_input_conv
    sd   = {re.sub(r'^(module\.)?(net\.)?', '', k): v for k,v in sd.items()}
    own  = net.state_dict()
    stem = next(k for k,v in own.items() if v.ndim == 4)
    if stem in sd and sd[stem].shape[1] == 3 != n_in: sd[stem] = adapt_input_conv(n_in, sd[stem])
    with torch.device('meta'):
        a,b = (get_model(name, weights=None, weights_backbone=None, num_classes=n).state_dict() for n in (2, 3))
    classes = {k for k in a if a[k].shape != b[k].shape}
    if source is True or any(k in sd and sd[k].shape != own[k].shape for k in classes):
        sd = {k: v for k,v in sd.items() if k not in classes}
    else: classes = set()
    try: missing,unexpected = net.load_state_dict(sd, strict=False)
    except RuntimeError as e: why = str(e).splitlines()[-1].strip().rstrip('.')    # sizes that differ
    else:
        missing = sorted({*missing} - classes)
        why = "; ".join(f"{len(o)} {what} ({o[0]})" for what,o in
                        (('missing', missing), ('unexpected', unexpected)) if o)
    if why: raise ValueError(f"{source} does not hold the weights of {name}: {why}; give the file that belongs to it")
    if name in ('fasterrcnn_resnet50_fpn', 'maskrcnn_resnet50_fpn', 'retinanet_resnet50_fpn'):
        for m in net.modules():
            if isinstance(m, torchvision.ops.FrozenBatchNorm2d): m.eps = 0.   # as when these weights were made

def _load_encoder(net, name, n_in, source):
    "Fill the encoder of `net` from the file `source` of a classifier"
    if name.startswith('ssdlite320'):
        raise ValueError(f"{name} has a smaller last stage than the {_body(name)} in {source}; take `ssdlite` with "
                         f"encoder={_body(name)!r}, which takes that file")
    sd = create_encoder(_body(name), source, n_in).body.state_dict()
    if name.startswith('ssd300'):                      # VGG16's layers, in their order, under other names
        own = [*net.backbone.features.state_dict().values(), *net.backbone.extra[0][:-1].state_dict().values()]
        for a,b in zip(own, sd.values(), strict=True): a.copy_(b)
    else: net.backbone.body.load_state_dict({k.removeprefix('features.'): v for k,v in sd.items()})

def _set_anchors(net, anchors):
    part = net.rpn if isinstance(net, GeneralizedRCNN) else net
    old  = part.anchor_generator
    if isinstance(net, (SSD, FCOS)):
        what = "the default boxes of SSD are relative to the picture" if isinstance(net, SSD) else "FCOS has no anchors"
        raise ValueError(f"{what}; leave `anchors` out")
    part.anchor_generator = _anchor_generator(anchors, len(old.sizes), old.num_anchors_per_location()[0])

def _anchor_generator(anchors, levels, n=None) -> AnchorGenerator:
    "`anchors` for a net of `levels` maps, `n` a cell; `ValueError` where they do not fit"
    sizes,ratios = anchors
    ns = {len(s)*len(ratios) for s in sizes}
    if len(sizes) != levels or len(ns) > 1 or n not in (None, *ns):
        came = ' and '.join(map(str, sorted(ns)))
        raise ValueError(f"anchors is (sizes by level, ratios) for {levels} levels with {n or 'equally many'} anchors "
                         f"on each; {len(sizes)} levels of {came} came: see `fit_anchors`")
    return AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),)*levels)

# --- on any encoder

class PyramidBackbone(nn.Module):
    "Maps of an encoder at `strides` under a feature pyramid (Lin et al., 2016, arXiv:1612.03144), all of `c` channels"
    def __init__(self, body, strides, c, extra):
        super().__init__()
        self.body,self.strides,self.out_channels = body,tuple(strides),c
        # a stride that the encoder lacks comes from its nearest map
        self.taps = [min(range(len(body.strides)), key=lambda i: abs(math.log2(body.strides[i]/s))) for s in strides]
        self.fpn  = FeaturePyramidNetwork([body.channels[i] for i in self.taps], c, extra)

    def forward(self, x:Tensor) -> dict[str,Tensor]:
        maps,(h,w) = self.body(x),x.shape[-2:]     # multiples of 32, by the transform's padding
        maps = [(maps[i], (h//s, w//s)) for i,s in zip(self.taps, self.strides)]
        return self.fpn(OrderedDict((str(i), m if m.shape[-2:] == hw else F.interpolate(m, hw))
                                    for i,(m,hw) in enumerate(maps)))

@checked_net(sizes=whole(1, 100), strides=several(STRIDE, "the strides of the maps, a list of whole numbers", least=1))
def default_anchors(
    strides:tuple,       # of the net's maps
    size:int|tuple=512,  # of the pictures in pixels, as the DataLoaders give them: the shorter side, or (w, h)
    sizes:int=1,         # a level; 3 = between the levels too, as in RetinaNet
) -> tuple[tuple,tuple]: # sizes by level in pixels, ratios: what `anchors=` takes
    """Anchors as torchvision's for 800 pixels: the smallest are 1/25 of the picture, each level has twice those before.
    Below twice the first stride too few of them would meet an object, so that small pictures have anchors from there"""
    least = max((size if isinstance(size, int) else min(size))/25, 2*strides[0])
    return tuple(tuple(least*s/strides[0]*2**(k/sizes) for k in range(sizes)) for s in strides),(.5, 1., 2.)

def _encoder(encoder, pretrained, n_in) -> tuple[nn.Module,dict]:
    "The encoder, and what torchvision's nets must know to normalise for it"
    enc = create_encoder(encoder, pretrained == 'encoder' or pretrained, n_in)
    if enc.input_size:
        raise ValueError(f"{enc.name} takes pictures of {enc.input_size[0]} x {enc.input_size[1]} pixels only, and a "
                         "detector pads to multiples of 32; take another encoder")
    return enc,{k: o if n_in == 3 else [sum(o)/3]*n_in for k,o in dict(image_mean=enc.mean, image_std=enc.std).items()}

def _pyramid(encoder, pretrained, n_in, width, strides, more) -> tuple[PyramidBackbone,list,dict]:
    "The backbone with `more` levels than `strides`, the strides of all levels, and what `_encoder` says"
    if not strides or any(s not in (1, 2, 4, 8, 16, 32) for s in strides) or sorted({*strides}) != [*strides]:
        raise ValueError(f"strides are powers of 2 up to 32 in rising order, as (8, 16, 32); {strides} came")
    enc,stats = _encoder(encoder, pretrained, n_in)
    if pretrained: _freeze_norms(enc)
    c = 32*max(round(scaled(256, width)/32), 2)     # GroupNorm has 32 groups, of two numbers at least on a map of 1 x 1
    body = PyramidBackbone(enc, strides, c, LastLevelP6P7(c, c) if more == 2 else LastLevelMaxPool())
    return body,[*strides, *(strides[-1]*2**(i+1) for i in range(more))],stats

@register('detection', 'faster_rcnn', kw=dict(encoder='test_resnet', width=.25, size=64), n_params=41_449_656)
@checked_net()
def faster_rcnn(
    n_out:int,
    n_in:int=3,
    pretrained=False,           # True, or the path of a local state dict: of the encoder, whose BatchNorm is then fixed
    encoder='resnet50',         # what `create_encoder` takes
    size:int|tuple=512,         # of the pictures in pixels, shorter side or (w, h), for `default_anchors`
    anchors:tuple=None,         # sizes by level, ratios (`fit_anchors`); None: `default_anchors`
    width:float=1.,             # 1 = 256 channels in the pyramid (in steps of 32), 1024 in the head
    strides:tuple=(4, 8, 16, 32),  # of the encoder's maps in the pyramid; one level more follows
    min_score:float=None,       # detections that score less are dropped; None: `MIN_SCORE`, .01
    max_dets:int=100,           # a picture
    resize:bool=False,          # to 800 pixels, or what `min_size` and `max_size` say
    **kwargs,                   # of torchvision's `FasterRCNN`
) -> TorchvisionDetector:
    "Faster R-CNN with a feature pyramid on any encoder; with 'resnet50' fasterrcnn_resnet50_fpn, but for the anchors"
    body,levels,stats = _pyramid(encoder, pretrained, n_in, width, strides, 1)
    hidden = scaled(1024, width)
    _check_kwargs(kwargs, FasterRCNN)
    net = FasterRCNN(
        body, rpn_anchor_generator=_anchor_generator(anchors or default_anchors(levels, size), len(levels)),
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(len(strides))], 7, 2),
        box_head=TwoMLPHead(body.out_channels*49, hidden), box_predictor=FastRCNNPredictor(hidden, n_out+1),
        **{**stats, **kwargs})
    return TorchvisionDetector(net, n_out, _min_score(min_score, kwargs), max_dets, resize)

class MultiScaleRoIPool(MultiScaleRoIAlign):
    """RoIPool (Girshick, 2015, arXiv:1504.08083) on the level of the pyramid that `MultiScaleRoIAlign` takes: box and
    bins are rounded to cells of the map, and each bin is its maximum. `sampling_ratio` has no meaning here"""
    def forward(self, x:dict[str,Tensor], boxes:list[Tensor], image_shapes:list[tuple[int,int]]) -> Tensor:
        maps = [x[k] for k in self.featmap_names]
        if self.scales is None:
            self.scales,self.map_levels = _setup_scales(maps, image_shapes, self.canonical_scale, self.canonical_level)
        rois,levels = _convert_to_roi_format(boxes),self.map_levels(boxes)
        out = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for i,(m,scale) in enumerate(zip(maps, self.scales)):
            on = torch.where(levels == i)[0]
            out[on] = roi_pool(m, rois[on], self.output_size, scale)
        return out

_POOLS = dict(align=MultiScaleRoIAlign, pool=MultiScaleRoIPool)

@register('instance', 'mask_rcnn', kw=dict(encoder='test_resnet', width=.25, size=64), n_params=44_077_773)
@checked_net()
def mask_rcnn(
    n_out:int,
    n_in:int=3,
    pretrained=False,           # True, or the path of a local state dict: of the encoder, whose BatchNorm is then fixed
    encoder='resnet50',         # what `create_encoder` takes
    size:int|tuple=512,         # of the pictures in pixels, shorter side or (w, h), for `default_anchors`
    anchors:tuple=None,         # sizes by level, ratios (`fit_anchors`); None: `default_anchors`
    width:float=1.,             # 1 = 256 channels in the pyramid (in steps of 32) and the mask head, 1024 in the other
    strides:tuple=(4, 8, 16, 32),  # of the encoder's maps in the pyramid; one level more follows
    pool:str='align',           # how both heads see a box: 'align' (RoIAlign), or 'pool' (RoIPool), which rounds it
    min_score:float=None,       # detections that score less are dropped; None: `MIN_SCORE`, .01
    max_dets:int=100,           # a picture
    resize:bool=False,          # to 800 pixels, or what `min_size` and `max_size` say
    **kwargs,                   # of torchvision's `MaskRCNN`
) -> TorchvisionDetector:
    "Mask R-CNN with a feature pyramid on any encoder; with 'resnet50' maskrcnn_resnet50_fpn, but for the anchors"
    body,levels,stats = _pyramid(encoder, pretrained, n_in, width, strides, 1)
    hidden,wide,c,maps = scaled(1024, width),scaled(256, width),body.out_channels,[str(i) for i in range(len(strides))]
    _check_kwargs(kwargs, MaskRCNN)
    net = MaskRCNN(
        body, rpn_anchor_generator=_anchor_generator(anchors or default_anchors(levels, size), len(levels)),
        box_roi_pool=_POOLS[pool](maps, 7, 2), mask_roi_pool=_POOLS[pool](maps, 14, 2),
        box_head=TwoMLPHead(c*49, hidden), box_predictor=FastRCNNPredictor(hidden, n_out+1),
        mask_head=MaskRCNNHeads(c, (wide,)*4, 1), mask_predictor=MaskRCNNPredictor(wide, wide, n_out+1),
        **{**stats, **kwargs})
    return TorchvisionDetector(net, n_out, _min_score(min_score, kwargs), max_dets, resize)

@register('detection', 'retinanet', kw=dict(encoder='test_resnet', width=.25, size=64), n_params=32_615_969)
@checked_net()
def retinanet(
    n_out:int,
    n_in:int=3,
    pretrained=False,           # True, or the path of a local state dict: of the encoder, whose BatchNorm is then fixed
    encoder='resnet50',         # what `create_encoder` takes
    size:int|tuple=512,         # of the pictures in pixels, shorter side or (w, h), for `default_anchors`
    anchors:tuple=None,         # sizes by level, ratios (`fit_anchors(..., sizes=3)`); None: `default_anchors`
    width:float=1.,             # 1 = 256 channels in pyramid and heads (in steps of 32)
    strides:tuple=(8, 16, 32),  # of the encoder's maps in the pyramid; two levels more follow. 4 in front: finer
    min_score:float=None,       # detections that score less are dropped; None: `MIN_SCORE`, .01
    max_dets:int=100,           # a picture
    resize:bool=False,          # to 800 pixels, or what `min_size` and `max_size` say
    **kwargs,                   # of torchvision's `RetinaNet`
) -> TorchvisionDetector:
    "RetinaNet on any encoder; with 'resnet50' retinanet_resnet50_fpn, but for the anchors"
    body,levels,stats = _pyramid(encoder, pretrained, n_in, width, strides, 2)
    gen = _anchor_generator(anchors or default_anchors(levels, size, 3), len(levels))
    _check_kwargs(kwargs, RetinaNet)
    net = RetinaNet(body, n_out+1, anchor_generator=gen, **{**stats, **kwargs})
    return TorchvisionDetector(net, n_out, _min_score(min_score, kwargs), max_dets, resize)

@register('detection', 'fcos', kw=dict(encoder='test_resnet', width=.25), n_params=32_161_370)
@checked_net()
def fcos(
    n_out:int,
    n_in:int=3,
    pretrained=False,           # True, or the path of a local state dict: of the encoder, whose BatchNorm is then fixed
    encoder='resnet50',         # what `create_encoder` takes
    width:float=1.,             # 1 = 256 channels in pyramid and heads (in steps of 32)
    strides:tuple=(8, 16, 32),  # of the encoder's maps in the pyramid; two levels more follow. 4 in front: finer
    min_score:float=None,       # detections that score less are dropped; None: `MIN_SCORE`, .01
    max_dets:int=100,           # a picture
    resize:bool=False,          # to 800 pixels, or what `min_size` and `max_size` say
    **kwargs,                   # of torchvision's `FCOS`
) -> TorchvisionDetector:
    "FCOS, which needs no anchors, on any encoder; with 'resnet50' fcos_resnet50_fpn"
    body,levels,stats = _pyramid(encoder, pretrained, n_in, width, strides, 2)
    cells = AnchorGenerator(tuple((s,) for s in levels), ((1.,),)*len(levels))
    _check_kwargs(kwargs, FCOS)
    net = FCOS(body, n_out+1, anchor_generator=cells, **{**stats, **kwargs})
    return TorchvisionDetector(net, n_out, _min_score(min_score, kwargs), max_dets, resize)

class SSDLiteBackbone(nn.Module):
    "Maps of an encoder from stride `first` on, and further ones, each half as large, down to 1 x 1 at `size` pixels"
    def __init__(self, body, first, size, width, norm_layer):
        super().__init__()
        self.body,self.taps = body,[i for i,s in enumerate(body.strides) if first <= s <= 32]
        if not self.taps:
            raise ValueError(f"SSDlite stands on maps at strides {first} to 32; {body.name} gives {body.strides}: take "
                             "another encoder")
        n   = math.ceil(math.log2(max(math.ceil(size/body.strides[self.taps[-1]]), 1)))
        chs = [body.channels[self.taps[-1]], *(scaled(c, width) for c in [512, 256, 256, 128, *[128]*n][:n])]
        self.extra = nn.ModuleList([_extra_block(i, o, norm_layer) for i,o in zip(chs, chs[1:])])
        _normal_init(self.extra)
        self.out_channels = [body.channels[i] for i in self.taps] + chs[1:]

    def forward(self, x:Tensor) -> dict[str,Tensor]:
        maps = self.body(x)
        maps = [maps[i] for i in self.taps]
        for block in self.extra: maps.append(block(maps[-1]))
        return OrderedDict((str(i), m) for i,m in enumerate(maps))

@register('detection', 'ssdlite', kw=dict(encoder='test_efficientnet', width=.25, size=64), size=(61, 50), min_bs=2,
          n_params=3_930_420)
@checked_net()
def ssdlite(
    n_out:int,
    n_in:int=3,
    pretrained=False,               # True, or the path of a local state dict: of the encoder
    encoder='mobilenet_v3_large',   # what `create_encoder` takes
    size:int|tuple=320,             # of the pictures in pixels, (w, h) or both: the maps go down to 1 x 1 at this size,
                                    # and begin at stride 16, or as much before that as it takes for five of them
    anchors:tuple=None,             # sizes by level in pixels, one each, and ratios, each with its inverse; None: from
                                    # .2 to .95 of the picture
    width:float=1.,                 # 1 = 512, 256, 256, 128 channels in the further maps
    min_score:float=None,           # detections that score less are dropped; None: `MIN_SCORE`, .01
    max_dets:int=100,               # a picture
    resize:bool=False,              # whether the net resizes pictures to `size`
    **kwargs,                       # of torchvision's `SSD`
) -> TorchvisionDetector:
    "SSDlite on any encoder; default boxes are relative to the picture"
    norm  = partial(nn.BatchNorm2d, eps=.001, momentum=.03)                        # as torchvision has it
    w,h   = (size, size) if isinstance(size, int) else size
    first = next((s for s in (16, 8) if math.log2(math.ceil(max(w, h)/s)) > 3), 4)
    enc,stats = _encoder(encoder, pretrained, n_in)
    body  = SSDLiteBackbone(enc, first, max(w, h), width, norm)
    boxes = _default_boxes(anchors, len(body.out_channels), min(w, h))
    head  = SSDLiteHead(body.out_channels, boxes.num_anchors_per_location(), n_out+1, norm)
    _check_kwargs(kwargs, SSD)
    net   = SSD(body, boxes, (w, h), n_out+1, head=head,
                **{**stats, **dict(nms_thresh=.55, topk_candidates=300), **kwargs})
    return TorchvisionDetector(net, n_out, _min_score(min_score, kwargs), max_dets, resize)

def _default_boxes(anchors, n, size) -> DefaultBoxGenerator:
    if anchors is None: return DefaultBoxGenerator([[2, 3]]*n, .2, .95)
    sizes,ratios = anchors
    if len(sizes) != n or any(len(s) != 1 for s in sizes):
        raise ValueError(f"anchors is (sizes by level, ratios) with one size on each of {n} levels; "
                         f"{[len(s) for s in sizes]} came: see `fit_anchors`")
    wide = sorted({round(max(r, 1/r), 2) for r in ratios if max(r, 1/r) > 1.1})    # squares are there anyway
    return DefaultBoxGenerator([wide]*n, scales=[*(s/size for s, in sizes), 1.])

for _name,_facts in dict(
    fasterrcnn_resnet50_fpn               = dict(n_params=41_449_656, like='faster_rcnn'),
    fasterrcnn_resnet50_fpn_v2            = dict(n_params=43_353_528, like='faster_rcnn'),
    fasterrcnn_mobilenet_v3_large_fpn     = dict(n_params=19_052_004),
    fasterrcnn_mobilenet_v3_large_320_fpn = dict(n_params=19_052_004, like='faster_rcnn'),
    retinanet_resnet50_fpn                = dict(n_params=32_615_969, like='retinanet'),
    retinanet_resnet50_fpn_v2             = dict(n_params=36_746_785, like='retinanet'),
    fcos_resnet50_fpn                     = dict(n_params=32_161_370, like='fcos'),
    ssd300_vgg16                          = dict(n_params=26_285_486, size=(300, 300), like='ssdlite'),
    ssdlite320_mobilenet_v3_large         = dict(n_params=2_469_860, min_bs=2)).items():
    register('detection', _name, **_facts)(partial(torchvision_detector, _name))

for _name,_n in dict(maskrcnn_resnet50_fpn=44_077_773, maskrcnn_resnet50_fpn_v2=45_982_669).items():
    register('instance', _name, n_params=_n, like='mask_rcnn')(partial(torchvision_detector, _name))
