"""torchvision's detectors: Faster R-CNN (Ren et al., 2015, arXiv:1506.01497), SSD (Liu et al., 2015, arXiv:1512.02325),
RetinaNet (Lin et al., 2017, arXiv:1708.02002), FCOS (Tian et al., 2019, arXiv:1904.01355), SSDlite (Sandler et al.,
2018, arXiv:1801.04381), Mask R-CNN (He et al., 2017, arXiv:1703.06870), by torchvision's names. They compute what
torchvision computes, except for what `torchvision_parts` changes, and:
- Images keep the size that the DataLoaders give them and are not resized again, unless `resize=True`.
- Detections are kept from a score of `MIN_SCORE` on, in all nets.
- All parameters can learn; the learner's `freeze` and `unfreeze` decide which do, not
  `trainable_backbone_layers`. BatchNorm as in torchvision: fixed in pretrained encoders, but not in _v2 and SSDlite"""
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
from .recipes import RECIPES
from .regions import region_counts
from .torchvision_parts import OURS, DetectorTransform, float32_hook, in_training, not_nan_hook, run_once, seeded
from ..encoders import create_encoder, read_weights, set_n_in
from ..kinds import WITH_ENCODER, checked_net
from ..registry import register

__all__ = ['TorchvisionDetector', 'torchvision_detector']

class TorchvisionDetector(Detector):
    """A net of `torchvision.models.detection` as a `Detector`. Raises `ValueError` for nets of other classes, and for a
    net with a transform of its own"""
    @checked_net()
    def __init__(self,
        net:GeneralizedRCNN|RetinaNet|FCOS|SSD,   # its parts become those of `torchvision_parts`, in place; a part of
                                 # another class than torchvision's stays as it is, and learns ignored objects as
                                 # background
        n_out:int,               # classes without background; the net has one more
        min_score:float=None,    # detections with a lower score are dropped; None (default): use the net's own
        max_dets:int=100,        # detections per image
        resize:bool=False,       # True: the net resizes images as in torchvision (to `min_size` and `max_size`, SSD
                                 # to its own size), and maps boxes back
    ):
        super().__init__()
        if not isinstance(net, (GeneralizedRCNN, RetinaNet, FCOS, SSD)):
            raise ValueError("net: expected a Faster or Mask R-CNN, RetinaNet, FCOS or SSD of torchvision, got a "
                             f"{type(net).__name__}; for other nets write a subclass of `Detector`")
        self.net,self.n_out,self.max_dets = net,n_out,max_dets           # torchvision's names, for its files
        for m in net.modules(): m.__class__ = OURS.get(type(m), type(m))
        if not isinstance(net.transform, DetectorTransform):
            raise ValueError("net.transform: expected torchvision's GeneralizedRCNNTransform, got a "
                             f"{type(net.transform).__name__}; move what it does to the DataLoaders")
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
        # VGG16's last stage is at the beginning of the first extra block; MobileNet's is in `features`
        vgg = isinstance(body.features[0], nn.Conv2d)
        return nn.ModuleList([body.features, *(body.extra[0][:-1] if vgg else [])])

    def losses_and_dets(self, x, targs, proposals):
        if proposals is not None:
            raise ValueError(f"{type(self.net).__name__} finds its own proposals; do not pass any")
        if self.has_masks and targs and 'masks' not in targs[0]:
            raise ValueError("masks: expected (b, n, h, w) beside the bboxes, since this net learns masks, got none; "
                             "pass masks, or use a net of `list_archs('detection')`")
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
            raise ValueError("this net normalizes maps of 1 x 1 over the batch, so it trains on batches of 2 "
                             f"images or more, got {len(x)}; raise bs, or drop the last batch") from e

    def _pad(self, found, x):
        dets = pad_dets(found, x[0].shape[-2:], self.max_dets)
        return (dets, _pad_masks(found, self.max_dets)) if self.has_masks else dets

    def _check_size(self, x):
        "Raise `ValueError` for images of another size than SSD300's, whose default boxes have fixed steps"
        t,boxes = self.net.transform,getattr(self.net, 'anchor_generator', None)
        if t.resizes or getattr(boxes, 'steps', None) is None or x.shape[-2:] == t.fixed_size[::-1]: return
        w,h = t.fixed_size
        raise ValueError(f"this SSD takes images of {h} x {w} pixels, got {x.shape[-2]} x {x.shape[-1]}; make the "
                         f"DataLoaders with size={w}, or let the net resize the images (`resize=True`)")

def _pad_masks(found, max_dets) -> Tensor:   # (b, max_dets, m, m), padded with zeros
    "The masks of the detections of `pad_dets`, in their order"
    masks = [d['masks'][d['labels'] > 0, 0][:max_dets] for d in found]
    return torch.stack([F.pad(m, (0, 0, 0, 0, 0, max_dets-len(m))) for m in masks])

# --- by name

def _known(arch) -> str:
    "The name of torchvision's builder `arch`. Raises `ValueError` for anything else"
    names = [n for n in list_models(module=torchvision.models.detection) if 'keypoint' not in n]
    name  = arch if isinstance(arch, str) else getattr(arch, '__name__', None)
    if 'keypointrcnn' in str(name):
        raise ValueError("keypointrcnn_resnet50_fpn learns the keypoints of people besides boxes, which this task does "
                         "not have: use fasterrcnn_resnet50_fpn for boxes, or the task 'keypoint' for points")
    if name not in names or not isinstance(arch, str) and get_model_builder(name) is not arch:
        raise ValueError(f"{arch!r} is not a builder of torchvision.models.detection; expected one of "
                         f"{', '.join(names)}")
    return name

_CLASSES = dict(fasterrcnn=FasterRCNN, maskrcnn=MaskRCNN, retinanet=RetinaNet, fcos=FCOS, ssd300=SSD, ssdlite320=SSD)

def check_kwargs(kwargs, *takers):
    "Raise `TypeError` for arguments that torchvision would accept and ignore"
    unknown = [k for k in kwargs if not any(k in signature(o).parameters for o in takers)]
    if unknown: raise TypeError(f"unexpected keyword argument {unknown[0]!r}, which torchvision's "
                                f"{takers[0].__name__} does not have")

def min_score_of(min_score, kwargs):
    """`min_score`, or `MIN_SCORE` for None; None where `kwargs` hold torchvision's own argument for it. Raises
    `ValueError` for both"""
    own = [k for k in ('score_thresh', 'box_score_thresh') if k in kwargs]
    if min_score is None: return None if own else MIN_SCORE
    if own: raise ValueError(f"min_score={min_score} and {own[0]}={kwargs[own[0]]} mean the same; pass one of them")
    return min_score

def _regions(name, size):
    "Numbers of regions of a two-stage net for images of `size`"
    if size is None or not name.startswith(('fasterrcnn', 'maskrcnn')): return {}
    # the builder for 320 pixels has few proposals in prediction already
    return {k: n for k,n in region_counts(size).items() if not ('_320_' in name and k == 'rpn_post_nms_top_n_test')}

def _body(name) -> str: return re.search('resnet50|mobilenet_v3_large|vgg16', name)[0]

@checked_net(pretrained=WITH_ENCODER)
def torchvision_detector(
    arch:str|Callable,        # builder of `torchvision.models.detection`, or its name
    n_out:int,                # classes without background
    n_in:int=3,               # channels of the images
    pretrained=False,         # True: torchvision's COCO weights, except for new classification layers; 'encoder':
                              # ImageNet weights of the encoder; or the path of a local state dict of the encoder (for
                              # ssd300_vgg16 torchvision's IMAGENET1K_FEATURES) or of the whole detector
    min_score:float=None,     # detections with a lower score are dropped; None (default): `MIN_SCORE`, 0.01
    max_dets:int=100,         # detections per image
    resize:bool=False,        # True: the net resizes images as in torchvision (mostly the shorter side to 800 pixels)
    anchors:tuple=None,       # sizes by level in pixels, ratios, as many as the net has (`fit_anchors`,
                              # `default_anchors`); None (default): torchvision's, for images of about 800 pixels
    size:int|tuple=None,      # size of the images in pixels, the shorter side or (w, h): of those smaller than 800
                              # two-stage nets look at fewer regions; None (default), or with `resize`: torchvision's
                              # numbers
    **kwargs,                 # arguments of torchvision's builder
) -> TorchvisionDetector:
    """torchvision's detector for `n_out` classes. Raises `ValueError` for names and weights that do not fit, `OSError`
    where weights cannot be downloaded"""
    name = _known(arch)
    if 'trainable_backbone_layers' in kwargs:
        raise ValueError("trainable_backbone_layers is not supported: all layers can learn here, and the learner's "
                         "`freeze` and `unfreeze` decide which do; leave it out")
    check_kwargs(kwargs, _CLASSES[name.partition('_')[0]], get_model_builder(name))
    net,sd = _built(name, pretrained, num_classes=n_out+1, **{**_regions(name, None if resize else size), **kwargs})
    if n_in != 3:
        set_n_in(net.backbone, n_in, pretrained == 'encoder')
        t = net.transform
        t.image_mean,t.image_std = ([sum(o)/len(o)]*n_in for o in (t.image_mean, t.image_std))
    new = None if sd is None else _filled(net, sd, name, n_in, pretrained)   # None: all but the encoder
    if anchors is not None: _set_anchors(net, anchors)
    res = TorchvisionDetector(net, n_out, min_score_of(min_score, kwargs), max_dets, resize)
    if new is not None: res.new_layers = frozenset(f'net.{k}' for k in new)
    return res

def _built(name, pretrained, **kwargs):
    "torchvision's net, with the weights of its encoder where `pretrained` says so, and the state dict to fill it with"
    kind = ('IMAGENET1K_FEATURES' if 'vgg16' in name else 'IMAGENET1K_V1') if pretrained == 'encoder' else None
    coco = get_model_weights(name).DEFAULT
    try:
        net = get_model(name, weights=None, weights_backbone=kind, **kwargs)
        sd  = coco.get_state_dict(progress=True, check_hash=True) if pretrained is True else None
    except OSError as e:
        raise OSError(f"the weights of {name} could not be downloaded ({e}); without a network, set `pretrained` to "
                      f"the path of a local state dict of {name} or of {_body(name)}") from e
    return net,sd if pretrained in (False, True, 'encoder') else read_weights(Path(pretrained))

def _filled(net, sd, name, n_in, pretrained):
    "Load the state dict `sd` of a detector or of an encoder; return the names of the new layers, None: all but these"
    if not name.startswith('ssd') and not name.endswith('_v2'): freeze_norms(net.backbone.body)
    if any(re.match(r'(module\.)?(net\.)?(rpn|head)\.', k) for k in sd):
        return _load(net, sd, name, n_in, pretrained)
    _load_encoder(net, name, n_in, pretrained)

def _load(net, sd, name, n_in, source):
    """Load the state dict `sd` of a detector, except for the classification layers if the classes differ; return the
    names of those layers"""
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
    except RuntimeError as e: why = str(e).splitlines()[-1].strip().rstrip('.')    # a size mismatch
    else:
        missing = sorted({*missing} - classes)
        why = "; ".join(f"{len(o)} {what} ({o[0]})" for what,o in
                        (('missing', missing), ('unexpected', unexpected)) if o)
    if why: raise ValueError(f"{source} does not hold the weights of {name}: {why}; pass the file of this net")
    if name in ('fasterrcnn_resnet50_fpn', 'maskrcnn_resnet50_fpn', 'retinanet_resnet50_fpn'):
        for m in net.modules():
            if isinstance(m, torchvision.ops.FrozenBatchNorm2d): m.eps = 0.   # as when these weights were made
    return classes

def _load_encoder(net, name, n_in, source):
    "Load the encoder of `net` from the file `source` of a classifier"
    if name.startswith('ssdlite320'):
        raise ValueError(f"{name} has a smaller last stage than the {_body(name)} in {source}; use `ssdlite` with "
                         f"encoder={_body(name)!r}, which can load that file")
    sd = create_encoder(_body(name), source, n_in).body.state_dict()
    if name.startswith('ssd300'):                      # VGG16's layers in their order, by other names
        own = [*net.backbone.features.state_dict().values(), *net.backbone.extra[0][:-1].state_dict().values()]
        for a,b in zip(own, sd.values(), strict=True): a.copy_(b)
    else: net.backbone.body.load_state_dict({k.removeprefix('features.'): v for k,v in sd.items()})

def _set_anchors(net, anchors):
    part = net.rpn if isinstance(net, GeneralizedRCNN) else net
    old  = part.anchor_generator
    if isinstance(net, (SSD, FCOS)):
        what = "the default boxes of SSD are relative to the image" if isinstance(net, SSD) else "FCOS has no anchors"
        raise ValueError(f"{what}; leave `anchors` out")
    part.anchor_generator = anchor_generator(anchors, len(old.sizes), old.num_anchors_per_location()[0])

# From an ImageNet encoder as the same net on any encoder; VGG16 has no BatchNorm, so that its convolutions want less.
# From COCO weights the range that is usual for Adam; it was not measured here, where there are none
_RECIPES = {**RECIPES, 'ssd300': dict(base_lr=2e-4)}

def _recipes(name) -> dict:
    "Facts of the registry: what `fine_tune` does from an ImageNet encoder, and what else it does from COCO weights"
    return dict(recipe=_RECIPES[name.partition('_')[0]],
                recipe_all=dict(base_lr=2e-4 if name.startswith('ssd300') else 5e-4))

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
    register('detection', _name, weights='all', **_facts, **_recipes(_name))(partial(torchvision_detector, _name))

for _name,_n in dict(maskrcnn_resnet50_fpn=44_077_773, maskrcnn_resnet50_fpn_v2=45_982_669).items():
    register('instance', _name, weights='all', n_params=_n, like='mask_rcnn', **_recipes(_name))(
        partial(torchvision_detector, _name))
