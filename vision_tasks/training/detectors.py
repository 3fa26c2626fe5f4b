"Detectors for the learners of detection and instance segmentation: by name, with what their DataLoaders must give"
from __future__ import annotations
from functools import partial
from inspect import signature
from torch import nn
from ..models.detection.base import Detector
from ..models.detection.torchvision import torchvision_detector
from ..models.registry import get_arch
from .build import build_by_name, input_size, is_named, name_of, naming_arguments

__all__ = []

DEFAULTS = dict(detection=('fasterrcnn_resnet50_fpn_v2', 'faster_rcnn'),   # by itself, and with an `encoder`
                instance=('maskrcnn_resnet50_fpn_v2', 'mask_rcnn'))

def build_detector(task, dls, arch, encoder, n_out, pretrained, arch_kwargs):
    "The `Detector` of a learner of `task`, and what is pretrained of it; `ValueError` where it does not fit `dls`"
    kw = dict(arch_kwargs or {})
    if isinstance(arch, nn.Module): model,weights = arch,False
    else:
        if encoder is not None: kw['encoder'] = encoder
        arch = arch or DEFAULTS[task][encoder is not None]
        model,weights = _build(task, arch, n_out, pretrained, kw, dls)
    check_detector(model, task, dls)
    return model,weights

def _build(task, arch, n_out, pretrained, kw, dls):
    name = name_of(task, arch)
    if name is not None and 'keypointrcnn' in name: name = None     # torchvision_detector says why not
    theirs = isinstance(arch, str) or getattr(arch, '__module__', '').startswith('torchvision.')
    build  = get_arch(name, task) if name else partial(torchvision_detector, arch) if theirs else arch
    # anchors and maps are made for the size of the images
    size = input_size(dls)
    if size is not None and 'size' in signature(build).parameters: kw.setdefault('size', size)
    with naming_arguments(arch):
        if name: return build_by_name(task, name, n_out, pretrained, kw)
        if is_named(arch): return build(n_out, pretrained=pretrained, **kw),pretrained
        return build(n_out, **kw),False

def check_detector(model, task, dls):
    "Raise `ValueError` where `model` is no detector of `task`, or wants other batches than `dls` give"
    if not isinstance(model, Detector): raise ValueError(
        f"expected a `Detector`, which returns losses when training and detections otherwise, got a "
        f"{type(model).__name__}; subclass vision_tasks.models.detection.base.Detector")
    if model.needs_proposals != (dls.n_inp > 1): raise ValueError(
        "this network does not find its own proposals: make the DataLoaders with `detection_dls(..., "
        "proposals='selective_search')`" if model.needs_proposals else
        "this network finds its own proposals: make the DataLoaders without `proposals`")
    if model.has_masks != (task == 'instance'): raise ValueError(
        "this network learns masks besides boxes: train it with `instance_dls` and `instance_learner`"
        if model.has_masks else
        "this network predicts boxes, but no masks: take one of `list_archs('instance')`, or `detection_learner`")
    n = len(getattr(dls.valid_ds, 'tls', ())) - dls.n_inp   # boxes, labels, and masks if there are any
    if n == 1: raise ValueError(f"the DataLoaders give no boxes: make them with `{task}_dls`")
    if n == 2 and task == 'instance': raise ValueError(
        "the DataLoaders give boxes without masks, and this network learns masks: make them with `instance_dls`")
    if n == 3 and task == 'detection': raise ValueError(
        "the DataLoaders hold masks, which this network does not learn: make them with `detection_dls`")
