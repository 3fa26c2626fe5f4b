"Transform blocks: from an `Annotation` to the tensors of a batch"
from __future__ import annotations
import os
import numpy as np
import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from fastai.data.block import TransformBlock
from fastai.data.transforms import IntToFloatTensor, MultiCategorize, MultiCategory
from fastai.vision.core import PILMask, PointScaler, TensorImage, TensorMask
from fasttransform import DisplayedTransform, ItemTransform
from PIL import Image
from ..arguments import FUNCTION, checked
from .image import wh
from .image import image_size, resolve_grey_range
from .items import (IMAGE_TYPES, BBoxLabels, ClassMask, FileImage, InstanceMasks, Keypoints, LabelSet, ObjectBBoxes,
                    ObjectLabels, ObjectMasks, OneBox, OneClass, OneObject, PixelBBox, RegionProposals, as_bbox)
from .proposals import check_boxes
from .targets import class_mask, point_pairs

__all__ = ['FileImageBlock', 'LabelSetEncode', 'LabelSetBlock', 'ClassBlock', 'KeypointEncode', 'KeypointBlock',
           'OneObjectBlock', 'ClassMaskEncode', 'ClassMaskBlock', 'ObjectMasksBlock', 'ObjectBlock', 'ProposalsBlock',
           'pad_objects']

class FileImageEncode(DisplayedTransform):
    "Any input of `FileImage.create` to a `FileImage`; `grey_range` is exported with the learner"
    input_types = IMAGE_TYPES
    cache = None   # `PixelCache` of the DataLoaders, which is not exported
    def __init__(self, grey_range=None): self.grey_range = resolve_grey_range(grey_range)
    def encodes(self, o): return FileImage.create(o, self.grey_range) if self.cache is None else self.cache.image(o)

def FileImageBlock(
    grey_range=None,   # as in `set_grey_range`, for images of more than 8 bits; None (default): its current setting
):
    "Block for an image from a path, an `Annotation`, bytes, a PIL image or an array; float in [0, 1] on the device"
    return TransformBlock(type_tfms=FileImageEncode(grey_range), batch_tfms=IntToFloatTensor)

def grey_range_of(dls):
    "The `grey_range` with which `dls` open images; None if their block is not a `FileImageBlock`"
    fs = dls.valid.dataset.tls[0].tfms.fs if hasattr(dls.valid.dataset, 'tls') else []
    return next((f.grey_range for f in fs if isinstance(f, FileImageEncode)), None)

class LabelSetEncode(MultiCategorize):
    "Class names to a `LabelSet` of `len(vocab)` and back"
    @checked()
    def __init__(self,
        vocab, # list of class names
    ): super().__init__(vocab=list(vocab))
    def encodes(self, o):
        res = torch.zeros(len(self.vocab))
        for name in o: res[self.vocab.o2i[name]] = 1
        return LabelSet(res)
    def decodes(self, o): return MultiCategory([self.vocab[i] for i in o.nonzero().flatten().tolist()])

@checked()
def ClassBlock(
    vocab, # list of class names
):
    "Block for one class name as its index in `vocab`"
    return TransformBlock(type_tfms=OneClass(vocab))

@checked()
def LabelSetBlock(
    vocab, # list of class names
):
    "Block for a set of class names as a multi-hot vector"
    return TransformBlock(type_tfms=LabelSetEncode(vocab))

class KeypointEncode(DisplayedTransform):
    """(k, 2) points in pixels to `Keypoints`; stores their names, the lines between them, and the pairs to swap in a
    mirrored image. Raises `ValueError` for pairs that are not in `vocab`"""
    @checked()
    def __init__(self,
        vocab,           # (k,) names of the points
        skeleton=(),     # pairs of points, by name or index, to join by a line
        flip_pairs=None, # pairs of points, by name or index, to swap in a mirrored image; None (default): unknown, so
                         # that mirroring raises
    ):
        self.vocab,self.skeleton = list(vocab),point_pairs(skeleton, vocab, 'skeleton') or []
        self.flip_pairs = point_pairs(flip_pairs, vocab, 'flip_pairs')
    def encodes(self, o):
        p = torch.tensor(np.asarray(o), dtype=torch.float32).view(-1, 2)
        return Keypoints(p, flip_pairs=self.flip_pairs)

class KeypointScaler(PointScaler):
    "fastai's `PointScaler`; faster, without its dispatch, for the common item of image and `Keypoints`"
    def __call__(self, x, **kwargs):
        if not (isinstance(x, tuple) and len(x) == 2 and type(x[1]) is Keypoints): return super().__call__(x, **kwargs)
        im,p = x
        w,h = self.sz = [im.shape[-1], im.shape[-2]] if isinstance(im, Tensor) else list(im.size)
        p = Keypoints(p.as_subclass(Tensor)*torch.tensor([2/w, 2/h]) - 1, flip_pairs=p.flip_pairs, img_size=(w, h))
        return im,p

@checked()
def KeypointBlock(
    vocab,           # (k,) names of the points
    skeleton=(),     # pairs of points, by name or index, to join by a line
    flip_pairs=None, # pairs of points, by name or index, to swap in a mirrored image; None (default): unknown
):
    "Block for points as in fastai's `PointBlock`: x y in [-1, 1] of the network's input"
    return TransformBlock(type_tfms=KeypointEncode(vocab, skeleton, flip_pairs), item_tfms=KeypointScaler)

@checked()
def OneObjectBlock(
    vocab, # list of class names
):
    "Two blocks for one object: its id, and (1, 4) x1 y1 x2 y2 in [-1, 1] of the network's input, nan without a box"
    return (TransformBlock(type_tfms=OneObject(vocab)),
            TransformBlock(type_tfms=as_bbox, item_tfms=[PointScaler, OneBox]))

class ClassMaskImage(PILMask):
    "A `ClassMask` as a PIL image, for fastai's item transforms"
    _tensor_cls = ClassMask

class ClassMaskEncode(DisplayedTransform):
    "The class mask of an `Annotation`; stores the class names. Raises `AnnotationError` for other indices"
    cache = None   # as in `FileImageEncode`
    @checked()
    def __init__(self,
        vocab, # list of class names, in the order of their indices
    ): self.vocab = list(vocab)
    def encodes(self, a):
        if self.cache is not None and (res := self.cache.mask(a)) is not None: return res
        m = class_mask(a, len(self.vocab))
        return ClassMaskImage(Image.fromarray(m.astype(np.uint8 if len(self.vocab) <= 255 else np.int32, copy=False)))

@checked()
def ClassMaskBlock(
    vocab, # list of class names, in the order of their indices
):
    "Block for the class index of every pixel, from the `mask` of an `Annotation`"
    return TransformBlock(type_tfms=ClassMaskEncode(vocab), batch_tfms=IntToFloatTensor)

class ObjectMasksEncode(DisplayedTransform):
    "The masks of an `Annotation`, not decoded"
    def encodes(self, a): return ObjectMasks(a)

class MasksDecoded(ItemTransform):
    "Raise `ValueError` if no `JointTransform` has decoded the masks: fastai's `Resize` does not transform them"
    order = 3   # after the geometry
    def encodes(self, x):
        if any(isinstance(o, ObjectMasks) for o in x): raise ValueError(
            "only JointTransform transforms masks with the image, but the item transforms have none: "
            "pass item_tfms=JointTransform(size), which brings images, boxes and masks to one size")
        return x

def ObjectMasksBlock():
    "Block for the (n, h, w) masks of all objects of an `Annotation`, one for each box"
    return TransformBlock(type_tfms=ObjectMasksEncode(), item_tfms=MasksDecoded())

@checked()
def ObjectBlock(
    vocab, # list of class names
):
    "Two blocks for the boxes in pixels and the ids of all objects of an `Annotation`, padded to the most in a batch"
    pad = dict(before_batch=pad_objects)
    return TransformBlock(type_tfms=ObjectBBoxes()),TransformBlock(type_tfms=ObjectLabels(vocab), dls_kwargs=pad)

@IntToFloatTensor
def encodes(self, o:InstanceMasks|ClassMask):
    "Masks on the device, for the `IntToFloatTensor` of fastai, which patches its methods in this way"
    # instances stay uint8, an eighth of int64; fastai divides class masks by 1
    return o if isinstance(o, InstanceMasks) else o.long()

class ProposalsEncode(DisplayedTransform):
    "The proposals for an image: (k, 4) boxes in pixels, from the callable `proposals`"
    input_types = IMAGE_TYPES
    def __init__(self, proposals): self.proposals = proposals
    def encodes(self, o):
        size = image_size(o) if isinstance(o, (str, os.PathLike)) else FileImage.create(o).size
        return RegionProposals.create(check_boxes(self.proposals(o), o), img_size=size)

@checked(proposals=FUNCTION)
def ProposalsBlock(
    proposals,   # callable: path, PIL image or array -> (k, 4) boxes in pixels, such as `Proposals`
):
    "Block for boxes without labels, padded with zeros to the most in a batch"
    return TransformBlock(type_tfms=ProposalsEncode(proposals), dls_kwargs=dict(before_batch=pad_objects))

def pad_objects(
    samples, # list of tuples, one per image, of the types of `items`
):           # list of tuples
    """Pad samples to common shapes, for collate: images, class masks and instance masks at the right and bottom to the
    largest, objects and proposals to the most in the batch. Raises `ValueError` if boxes and image differ in size"""
    # for speed: fastai's tensors dispatch at every `len` and `shape`
    with DisableTorchFunctionSubclass(): return _grown(samples)

def _grown(samples):
    def most(*types):
        return max((len(o) for s in samples for o in s if isinstance(o, types[0]) and not isinstance(o, types[1:])),
                   default=0)
    for s in samples:
        size = next((o.shape[:-3:-1] for o in s if isinstance(o, TensorImage)), None)
        for o in s:
            if size is None or not isinstance(o, PixelBBox) or o.img_size in (None, size): continue
            raise ValueError(f"the image is {wh(size)}, but its boxes belong to one of {wh(o.img_size)}: an item "
                             "transform moved only one of them; use one JointTransform for all")
    n,many = most((PixelBBox, BBoxLabels, InstanceMasks), RegionProposals),most(RegionProposals)
    hw = [max(o.shape[d] for s in samples for o in s if isinstance(o, (TensorImage, TensorMask))) for d in (-2, -1)] \
         if any(isinstance(o, (TensorImage, TensorMask)) for s in samples for o in s) else None
    def grow(o):
        if isinstance(o, RegionProposals): shape,fill = (many, 4),0
        elif isinstance(o, (PixelBBox, BBoxLabels)): shape,fill = (n, *o.shape[1:]),0
        elif isinstance(o, InstanceMasks): shape,fill = (n, *hw),0
        elif isinstance(o, TensorMask): shape,fill = tuple(hw),255
        elif isinstance(o, TensorImage): shape,fill = (*o.shape[:-2], *hw),0
        else: return o
        if tuple(o.shape) == shape: return o
        t = o.as_subclass(Tensor)
        res = t.new_full(shape, fill)
        res[tuple(slice(0, k) for k in t.shape)] = t
        res = res.as_subclass(type(o))
        for k,v in o.__dict__.items(): setattr(res, k, v)
        if isinstance(o, PixelBBox): res.img_size = (hw[1], hw[0]) if hw else o.img_size
        return res
    return [tuple(grow(o) for o in s) for s in samples]
