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
import re
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
import torch, torchvision
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_builder, get_model_weights, list_models
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD
from timm.models import adapt_input_conv
from .base import MIN_SCORE, Detector, pad_dets
from .pyramid import anchor_generator, freeze_norms
from .torchvision_parts import OURS, DetectorTransform, float32_hook, in_training, not_nan_hook, run_once, seeded
from ..encoders import create_encoder, read_weights, set_n_in
from ..kinds import WITH_ENCODER, checked_net
from ..registry import register

__all__ = ['TorchvisionDetector', 'torchvision_detector']

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
        for m in net.modules(): m.__class__ = OURS.get(type(m), type(m))
        if not isinstance(net.transform, DetectorTransform):
            raise ValueError("the net's transform is torchvision's GeneralizedRCNNTransform; a "
                             f"{type(net.transform).__name__} came: let the DataLoaders do what it does")
        net.requires_grad_(True)
        net.transform.resizes = resize
        last = net.roi_heads if self.two_stage else net
        last.detections_per_img = max_dets
        if min_score is not None: last.score_thresh = min_score
        heads = [net.rpn.head, last.box_predictor, last.mask_predictor] if self.two_stage else [net.head]
        for m in (net.backbone, *heads):
            if m is not None: m.register_forward_hook(float32_hook)
        for m in heads:
            if m is not None: m.register_forward_hook(not_nan_hook)

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
        with run_once((net, 'transform'), (net, 'backbone'), (head, 'head'), (head, 'anchor_generator')):
            dets = self._pad(net(x, targs), x)
            with in_training(net, *stages), seeded(x[0].device): return net(x, targs),dets

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

def check_kwargs(kwargs, *takers):
    "Raise for what torchvision would take without a word, and do nothing with"
    unknown = [k for k in kwargs if not any(k in signature(o).parameters for o in takers)]
    if unknown: raise TypeError(f"unexpected keyword argument {unknown[0]!r}, which torchvision's "
                                f"{takers[0].__name__} does not have")

def min_score_of(min_score, kwargs):
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
    check_kwargs(kwargs, _CLASSES[name.partition('_')[0]], get_model_builder(name))
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
        set_n_in(net.backbone, n_in, kind is not None)
        t = net.transform
        t.image_mean,t.image_std = ([sum(o)/len(o)]*n_in for o in (t.image_mean, t.image_std))
    new = None      # all but the encoder
    if pretrained not in (False, True, 'encoder'): sd = read_weights(Path(pretrained))
    if sd is not None:
        if not name.startswith('ssd') and not name.endswith('_v2'): freeze_norms(net.backbone.body)
        if any(re.match(r'(module\.)?(net\.)?(rpn|head)\.', k) for k in sd):
            new = _load(net, sd, name, n_in, pretrained)
        else: _load_encoder(net, name, n_in, pretrained)
    if anchors is not None: _set_anchors(net, anchors)
    res = TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)
    if new is not None: res.new_layers = frozenset(f'net.{k}' for k in new)
    return res

def _load(net, sd, name, n_in, source):
    """Fill `net` from the state dict `sd` of a detector, but for the layers that predict classes if the classes differ;
    return the names of those layers"""
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
    return classes

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
    part.anchor_generator = anchor_generator(anchors, len(old.sizes), old.num_anchors_per_location()[0])

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
    register('detection', _name, weights='all', **_facts)(partial(torchvision_detector, _name))

for _name,_n in dict(maskrcnn_resnet50_fpn=44_077_773, maskrcnn_resnet50_fpn_v2=45_982_669).items():
    register('instance', _name, weights='all', n_params=_n, like='mask_rcnn')(partial(torchvision_detector, _name))
