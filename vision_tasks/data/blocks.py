"Item types and transform blocks: what an `Annotation` becomes on its way into a batch"
from __future__ import annotations
import errno, io, os
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
import numpy as np
import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from fastai.data.block import TransformBlock
from fastai.data.transforms import Categorize, Category, IntToFloatTensor, MultiCategorize, MultiCategory
from fastai.torch_core import TensorCategory, TensorMultiCategory
from fastai.vision.core import PILImage, PILMask, PointScaler, TensorBBox, TensorImage, TensorMask, TensorPoint
from fasttransform import DisplayedTransform, ItemTransform
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
try: from torchvision.io import ImageReadMode, decode_jpeg
except ImportError: decode_jpeg = None     # torchvision means to give its decoders up; Pillow's give the same pixels
from ..arguments import FUNCTION, TEXT, Kind, brief, came, checked, instance, nearest, several, whole
from .annotation import Annotation, AnnotationError, select_objects, unturned, wh
from .image import (bytes_of_jpeg, check_single, decode_image, decode_rgb, image_size, open_image, orientation,
                    read_bytes, resolve_grey_range, shown_size)
from .masks import decode_class_mask
from .proposals import check_boxes
from ..ops.masks import decode_mask, rle_columns, rle_counts

__all__ = ['FileImage', 'LabelSet', 'PixelBBox', 'BBoxLabels', 'InstanceMasks', 'FileImageBlock', 'LabelSetBlock',
           'LabelSetEncode', 'Keypoints', 'KeypointBlock', 'KeypointEncode', 'marked_points', 'mirror_points',
           'point_pairs', 'OneObject', 'OneObjectBlock', 'the_object', 'object_label', 'object_bbox', 'clip_objects',
           'ClassMask', 'ClassMaskBlock', 'ClassMaskEncode', 'class_mask', 'annotation_of', 'ObjectBlock',
           'ObjectBBoxes', 'ObjectLabels', 'object_bboxes', 'ObjectMasks', 'ObjectMasksBlock', 'object_masks',
           'check_masks', 'RegionProposals', 'ProposalsBlock', 'pad_objects', 'path_of',
           'label_set', 'check_labels', 'NO_OBJECT']

# --- images

def _bytes_of(path):
    "What the file at `path` holds. Raises `OSError` that says what to do"
    try: return read_bytes(path)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such image file; fix the path", str(path)) from None
    except IsADirectoryError:
        raise IsADirectoryError(errno.EISDIR, "a folder, not an image file; fix the path", str(path)) from None

class FileImage(PILImage):
    """An image that stays a file until its pixels are asked for, then upright and RGB; `JointTransform` asks for no
    more than it needs"""
    _bytes = _open = _name = _grey_range = None
    exif = 1   # orientation of the file

    @classmethod
    def create(cls, o, grey_range=None):
        """`o`: a path, an `Annotation`, whose `size` must be that of the image, bytes of an image file, a PIL image, or
        a uint8 array or tensor as `array_size` takes it, whose alpha channel, if any, is dropped. A JPEG opened by
        Pillow whose pixels nobody has asked for yet is read like its file, possibly at a reduced size; all other pixels
        are used as they are. `grey_range`: as of `to_rgb`. Raises `ValueError` for arrays of another shape or dtype"""
        if grey_range is not None: grey_range = resolve_grey_range(grey_range)
        if isinstance(o, Annotation): return cls._of_annotation(o, grey_range)
        if isinstance(o, (str, os.PathLike)): return cls._of_bytes(_bytes_of(o), str(o), grey_range)
        if isinstance(o, (bytes, bytearray)): return cls._of_bytes(bytes(o), 'image in memory', grey_range)
        if isinstance(o, (np.ndarray, Tensor)): o = _image_of_array(o)
        if not isinstance(o, Image.Image):
            raise ValueError("image: expected a path, an Annotation, bytes of an image file, a PIL image, an array or "
                             f"a tensor, got {came(o)}")
        name = getattr(o, 'filename', '') or 'image in memory'
        check_single(o, name)
        jpeg = bytes_of_jpeg(o)
        if jpeg is not None: return cls._of_bytes(jpeg, name, grey_range)
        im = decode_rgb(o, grey_range)
        return cls(im.copy() if im is o else im)   # fastai changes the class of what it is given

    @classmethod
    def _of_annotation(cls, a, grey_range):
        self = cls.create(a.path, grey_range)
        if self.size == a.size: return self
        raise AnnotationError(
            f"{a.path}, size: expected that of the image, {wh(self.size)}{unturned(a.path, a.size)}, got {wh(a.size)}; "
            "boxes, points and masks would be shifted: fix `size`, and the coordinates if they belong to an image of "
            "another size, or drop the annotation. `check_annotations` lists all such annotations")

    @classmethod
    def _of_bytes(cls, data, name, grey_range):
        im = open_image(io.BytesIO(data), name)
        self = cls(Image.Image())
        self._bytes,self._open,self._name,self._mode,self._size = bytearray(data),im,name,'RGB',shown_size(im)
        self.exif,self._grey_range = orientation(im),resolve_grey_range(grey_range)
        return self

    @property
    def loaded(self) -> bool:
        "Whether the pixels are there"
        return self._im is not None

    def decode(self, least:tuple[int,int]=None) -> Image.Image:
        "The pixels as a plain RGB image; of a JPEG possibly a smaller one, but not under `least` (w, h)"
        return self if self.loaded else decode_image(self._file(), self._name, least, self._grey_range)

    def _file(self):
        im,self._open = self._open or open_image(io.BytesIO(self._bytes), self._name),None
        return im

    def pixels(self, least:tuple[int,int]=None) -> Tensor:
        "The same as (3, h, w) uint8; torchvision decodes a plain JPEG, to the same values and sooner"
        if not self.loaded:
            im = self._open = self._file()
            # Pillow makes a JPEG 2, 4 or 8 times smaller
            fits = least is None or min(im.width/least[0], im.height/least[1]) < 2
            plain = im.format == 'JPEG' and im.mode in ('RGB', 'L') and orientation(im) == 1
            if decode_jpeg is not None and plain and fits:
                try: return decode_jpeg(torch.frombuffer(self._bytes, dtype=torch.uint8), mode=ImageReadMode.RGB)
                except RuntimeError: pass   # Pillow reads it, or says what is wrong with it
        return pil_to_tensor(self.decode(least))

    def load(self):
        if not self.loaded and self._bytes is not None:
            self._im,self._bytes = self.decode().im,None
        return super().load()

def array_size(o) -> tuple[int,int]:
    """(w, h) of an image as an array (h, w), (h, w, c), or as a tensor (h, w), (c, h, w), c = 1, 3 or 4 channels. A
    tensor with channels last, and an array with channels first, are taken where their shape can mean nothing else"""
    return _hw(o)[0][::-1]

def _hw(o) -> tuple[tuple[int,int],bool]:
    "((h, w), whether channels come first) of an image as an array or a tensor"
    shape,channels = tuple(o.shape),(1, 3, 4)
    if len(shape) == 2 and min(shape) > 0: return shape,False
    if len(shape) == 3 and min(shape) > 0:
        first,last = shape[0] in channels,shape[2] in channels
        if first and (isinstance(o, Tensor) or not last): return shape[1:],True
        if last: return shape[:2],False
    what,usual = ("a tensor", "(h, w) or (3, h, w)") if isinstance(o, Tensor) else ("an array", "(h, w) or (h, w, 3)")
    raise ValueError(f"{what} as an image is {usual}, also with 1 or 4 channels; {shape} came" +
                     (": pass several images as a list" if len(shape) == 4 else ""))

def _image_of_array(o) -> Image.Image:
    (h,w),first = _hw(o)
    if isinstance(o, Tensor): o = o.as_subclass(Tensor).cpu().numpy()
    if o.dtype != np.uint8:
        raise ValueError(f"an array or tensor as an image holds uint8 in 0..255, not {o.dtype}; scale and cast it "
                         "first: (x*255).round().astype('uint8') where it is in 0..1")
    if first: o = o.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(o[...,0] if o.ndim == 3 and o.shape[2] == 1 else o))

# what an image is made from, so that fastai's `dls.test_dl(items)` knows where in the pipeline an item of it belongs
IMAGE_TYPES = Annotation,str,os.PathLike,bytes,bytearray,Image.Image,np.ndarray,Tensor

class FileImageEncode(DisplayedTransform):
    "What `FileImage.create` takes to a `FileImage`; its `grey_range` is exported with the learner"
    input_types = IMAGE_TYPES
    def __init__(self, grey_range=None): self.grey_range = resolve_grey_range(grey_range)
    def encodes(self, o): return FileImage.create(o, self.grey_range)

def FileImageBlock(
    grey_range=None,   # as of `set_grey_range`, for images of more than 8 bits; None (default): what is set there now
):
    "An image from a path, an `Annotation`, bytes, a PIL image or an array; float in 0..1 on the device"
    return TransformBlock(type_tfms=FileImageEncode(grey_range), batch_tfms=IntToFloatTensor)

def grey_range_of(dls):
    "The `grey_range` with which `dls` open images; `None` where their block is no `FileImageBlock`"
    fs = dls.valid.dataset.tls[0].tfms.fs if hasattr(dls.valid.dataset, 'tls') else []
    return next((f.grey_range for f in fs if isinstance(f, FileImageEncode)), None)

def path_of(o):
    "The file of an `Annotation`; anything else as it is"
    return o.path if isinstance(o, Annotation) else o

# --- labels of a picture

class LabelSet(TensorMultiCategory):
    "(c,) float, 1 where the picture has the label"

def label_set(a):
    "The labels of `a`, each once; a list, since a transform takes a tuple for several items"
    return sorted(set(a.labels))

class LabelSetEncode(MultiCategorize):
    "Names to a `LabelSet` of `len(vocab)` and back"
    @checked()
    def __init__(self, vocab): super().__init__(vocab=list(vocab))
    def encodes(self, o):
        res = torch.zeros(len(self.vocab))
        for name in o: res[self.vocab.o2i[name]] = 1
        return LabelSet(res)
    def decodes(self, o): return MultiCategory([self.vocab[i] for i in o.nonzero().flatten().tolist()])

@checked()
def LabelSetBlock(vocab):
    "A set of names from `vocab` as a multi-hot vector"
    return TransformBlock(type_tfms=LabelSetEncode(vocab))

@checked(vocab=several(instance(str, what="a name"), "a list of names"))
def check_labels(annotations, vocab):
    "Raise `AnnotationError` for the first label not in `vocab`, with the nearest name and how many pictures have such"
    known,bad = set(vocab),[]
    for i,a in enumerate(annotations): bad += [(i, a, o) for o in a.labels if o not in known]
    if not bad: return
    i,a,o = bad[0]
    what = "an empty label" if o == '' else f"label {o!r}, which is not in the vocab of {len(vocab)} names"
    raise AnnotationError(f"{a.path}, row {i}: {what} ({len({j for j,*_ in bad})} pictures have such labels)"
                          f"{nearest(o, vocab)}; mend the label, or add it to the vocab")

# --- points

@checked(what=TEXT, k=whole(1), vocab=several(instance(str, int, np.integer, what="a name"), "a list of names"))
def point_pairs(pairs, vocab, what, k=None):
    "`pairs` of names or indices of the `k` points called `vocab`, as indices, None as it is; `what` is named in errors"
    if pairs is None: return None
    vocab = list(vocab)
    k = len(vocab) if k is None else k
    def index(o):
        if isinstance(o, (int, np.integer)) and 0 <= o < k: return int(o)
        if isinstance(o, str) and o in vocab: return vocab.index(o)
        raise ValueError(f"{what} names {brief(o)}, but the {k} points are {vocab}{nearest(o, vocab)}")
    if isinstance(pairs, (str, type, Mapping)) or not hasattr(pairs, '__iter__'):
        raise ValueError(f"{what}: expected a list of pairs such as ('left_eye', 'right_eye'), got {brief(pairs)}")
    for p in pairs:
        if isinstance(p, str) or not hasattr(p, '__len__') or len(p) != 2:
            raise ValueError(f"{what}: expected a list of pairs such as ('left_eye', 'right_eye'); it holds {brief(p)}")
    return [tuple(map(index, p)) for p in pairs]

@checked(p=Kind("a tensor (..., k, 2) of points", lambda o: isinstance(o, Tensor) and o.ndim > 1 and o.shape[-1] == 2))
def mirror_points(p:Tensor, flip_pairs) -> Tensor:   # (..., k, 2) -> (..., k, 2)
    "The points `p` of a mirrored image, those of each of `flip_pairs` (indices) exchanged: what was left is right"
    return swap_points(p, point_pairs(flip_pairs, range(p.shape[-2]), 'flip_pairs'))

def swap_points(p, flip_pairs):
    "`mirror_points`, unchecked: it is called for each item and batch"
    if flip_pairs is None and p.shape[-2] > 1:
        raise ValueError(f"the picture is mirrored, but it is not known which of its {p.shape[-2]} points then change "
                         "places: pass flip_pairs=[('left_eye', 'right_eye'), ...], [] where none do, or do not mirror "
                         "(JointTransform(flip=0), aug_transforms(do_flip=False))")
    idxs = list(range(p.shape[-2]))
    for l,r in flip_pairs or []: idxs[l],idxs[r] = r,l
    return p[..., idxs, :]

class Keypoints(TensorPoint):
    """(k, 2) or (b, k, 2) points, nan = not marked, which know their `flip_pairs`: whatever mirrors the picture,
    fastai's batch transforms too, exchanges them; what a batch transform pushes out of the picture becomes nan"""
    flip_pairs = None
    def set_meta(self, x, as_copy=False):
        "That of `x`, but for what is known already: the size that a transform of fastai has just made"
        known = dict(self.__dict__)
        super().set_meta(x, as_copy)
        self.__dict__.update(known)
        return self

    def affine_coord(self, mat=None, coord_tfm=None, sz=None, mode='nearest', pad_mode='zeros', align_corners=True):
        if mat is None and coord_tfm is None: return self
        p = TensorPoint(self.as_subclass(Tensor)).affine_coord(mat, coord_tfm, sz, mode, pad_mode, align_corners)
        p = p.as_subclass(Tensor)
        mirrored = None if mat is None else torch.linalg.det(mat.as_subclass(Tensor)[:,:2,:2].float()) < 0
        if mirrored is not None and mirrored.any():
            p = torch.where(mirrored.view(-1, 1, 1), swap_points(p, self.flip_pairs), p)
        return Keypoints(torch.where((p.abs() > 1).any(-1, keepdim=True), torch.nan, p), flip_pairs=self.flip_pairs)

class KeypointEncode(DisplayedTransform):
    """(k, 2) points in pixels as `Keypoints`; knows their names, the lines between them, and which pairs change places
    in a mirrored picture (None: not known)"""
    @checked()
    def __init__(self, vocab, skeleton=(), flip_pairs=None):
        self.vocab,self.skeleton = list(vocab),point_pairs(skeleton, vocab, 'skeleton') or []
        self.flip_pairs = point_pairs(flip_pairs, vocab, 'flip_pairs')
    def encodes(self, o):
        p = torch.as_tensor(np.asarray(o), dtype=torch.float32).view(-1, 2).clone()
        return Keypoints(p, flip_pairs=self.flip_pairs)

class KeypointScaler(PointScaler):
    "fastai's `PointScaler`; the common item, picture and `Keypoints`, without its dispatch, which takes longer"
    def __call__(self, x, **kwargs):
        if not (isinstance(x, tuple) and len(x) == 2 and type(x[1]) is Keypoints): return super().__call__(x, **kwargs)
        im,p = x
        w,h = self.sz = [im.shape[-1], im.shape[-2]] if isinstance(im, Tensor) else list(im.size)
        p = Keypoints(p.as_subclass(Tensor)*torch.tensor([2/w, 2/h]) - 1, flip_pairs=p.flip_pairs, img_size=(w, h))
        return im,p

@checked()
def KeypointBlock(vocab, skeleton=(), flip_pairs=None):
    "Points as fastai's `PointBlock` has them: x y in [-1, 1] of the network's input"
    return TransformBlock(type_tfms=KeypointEncode(vocab, skeleton, flip_pairs), item_tfms=KeypointScaler)

def marked_points(a):
    "(k, 2) points of the one instance of `a`, nan where a point is not marked, or lies outside the picture"
    p = a.points.reshape(-1, 2)
    on = ((p >= 0) & (p <= a.size)).all(-1)      # nan is not
    if a.visible is not None: on &= a.visible.reshape(-1) > 0
    return np.where(on[:,None], p, np.float32(np.nan))

# --- the one object of a picture

NO_OBJECT = '#na#'   # the class of pictures without an object, fastai's word for what is not there

def the_object(a):
    "`a` with its one object, as far as in the picture, or with none; what is ignored is none. Raises for several"
    if a.ignore is not None: a = select_objects(a, ~a.ignore)
    if a.bboxes is not None: a = clip_objects(a)
    if len(a.labels) > 1: raise AnnotationError(
        f"{a.path}: {len(a.labels)} objects in one picture, but this task finds one; `largest_object(annotations)` "
        "keeps the largest, `crop_instances(annotations)` makes a picture of each")
    if NO_OBJECT in a.labels and a.bboxes is not None: raise AnnotationError(
        f"{a.path}: an object with a box is called {NO_OBJECT!r}, which is the class of images without an object; "
        "drop the object (`bboxes=np.zeros((0, 4)), labels=[]`), or rename its class")
    if not a.labels and a.bboxes is None: raise AnnotationError(
        f"{a.path}: neither label nor box; a picture without an object has empty boxes: bboxes=np.zeros((0, 4))")
    return a

def object_label(a):
    "The label of the one object of `a`, `NO_OBJECT` where there is none; its box need not be annotated"
    return (the_object(a).labels or [NO_OBJECT])[0]

def object_bbox(a):
    "(1, 4) pixels, the box of the one object of `a`; (0, 4) where there is none, or it is not annotated"
    b = the_object(a).bboxes
    return np.zeros((0, 4), np.float32) if b is None else b

class OneObject(Categorize):
    "A name to its id in `vocab` and back"
    @checked()
    def __init__(self, vocab): super().__init__(vocab=list(vocab), sort=False)
    def encodes(self, o):
        if o in self.vocab.o2i: return TensorCategory(self.vocab.o2i[o])
        if o == NO_OBJECT: raise AnnotationError(
            f"a picture without an object, but no class for such: the vocab {list(self.vocab)} lacks {NO_OBJECT!r}; "
            f"leave such pictures out, or train with vocab=[{NO_OBJECT!r}, ...]")
        raise AnnotationError(f"label {o!r} is not in the vocab {list(self.vocab)}{nearest(o, self.vocab)}")
    def decodes(self, o): return Category(self.vocab[int(o)])

class OneBox(DisplayedTransform):
    """(n, 4) boxes in [-1, 1], of which there is one or none left, as (1, 4); nan where a crop left none of it in the
    picture"""
    order = 3   # after the geometry, before pictures become tensors
    def encodes(self, o:TensorBBox):
        b = o.as_subclass(Tensor).clamp(-1, 1)[:1]
        if not len(b): b = torch.full((1, 4), torch.nan)
        return TensorBBox(torch.where((b[:,2:] > b[:,:2]).all(1, keepdim=True), b, torch.nan))

@checked()
def OneObjectBlock(vocab):
    "Name and box of the one object: an id, and (1, 4) x1 y1 x2 y2 in [-1, 1] of the network's input, nan without a box"
    return (TransformBlock(type_tfms=OneObject(vocab)),
            TransformBlock(type_tfms=_as_bbox, item_tfms=[PointScaler, OneBox]))

def _as_bbox(o): return TensorBBox(torch.as_tensor(np.asarray(o), dtype=torch.float32).view(-1, 4).clone())

@checked()
def clip_objects(a):
    "`a` with its boxes clipped to the picture; objects without an area in it go"
    hi = np.array([*a.size]*2, dtype=np.float32)
    b = object_bboxes(a).clip(0, hi)
    keep = (b[:,2:] > b[:,:2]).all(1)
    if keep.all() and (b == a.bboxes).all(): return a
    return select_objects(replace(a, bboxes=b), keep)

# --- a class for every pixel

class ClassMask(TensorMask):
    "(h, w) or (b, h, w) class index of every pixel, 255 = void"

class ClassMaskImage(PILMask):
    "A `ClassMask` as a PIL image, which fastai's transforms of items know how to move"
    _tensor_cls = ClassMask

class ClassMaskEncode(DisplayedTransform):
    "The class mask of an `Annotation`; knows the names of the classes"
    @checked()
    def __init__(self, vocab): self.vocab = list(vocab)
    def encodes(self, a):
        m = class_mask(a, len(self.vocab))
        return ClassMaskImage(Image.fromarray(m.astype(np.uint8 if len(self.vocab) <= 255 else np.int32, copy=False)))

def class_mask(a, n):
    "(h, w) class indices of `a`; raises where there is no mask, or an index beyond `n` classes, with the counts"
    if a.mask is None: raise AnnotationError(
        f"{a.path}: no class mask (`mask` is None); leave the picture out, or say where its mask is (`read_masks`)")
    try: m = decode_class_mask(a.mask, a.size)
    except OSError as e: raise AnnotationError(f"{a.path}: {e}; mend its mask, or leave the picture out") from e
    if m.size and (int(m.max()) < n or not ((m >= n) & (m != 255)).any()): return m
    values,counts = np.unique(m[(m >= n) & (m != 255)], return_counts=True)
    said = ', '.join(f'{v} ({k} pixels)' for v,k in zip(values[:8].tolist(), counts.tolist()))
    raise AnnotationError(f"{a.path}: its mask holds {said}, but there are {n} classes, 0 to {n-1}, and 255 for void; "
                          "name all classes in `codes`, or let `read_masks(..., void=...)` turn values into void")

@checked()
def ClassMaskBlock(vocab):
    "A class index for every pixel, from the `mask` of an `Annotation`"
    return TransformBlock(type_tfms=ClassMaskEncode(vocab), batch_tfms=IntToFloatTensor)

def annotation_of(a):
    "`a` as it is, for blocks that want all of it"
    return a

# --- objects: boxes, their labels, their masks

class PixelBBox(TensorBBox):
    "(n, 4) or (b, n, 4) float x1 y1 x2 y2 in pixels of the picture that it comes with, whose (w, h) is `img_size`"
    @classmethod
    def create(cls, o, img_size=None):
        return cls(torch.as_tensor(np.asarray(o), dtype=torch.float32).view(-1, 4).clone(), img_size=img_size)

    def affine_coord(self, mat=None, coord_tfm=None, sz=None, mode='nearest', pad_mode='zeros', align_corners=True):
        "fastai's batch transforms move it as they move the picture; rows of zeros are padding and stay so"
        if pad_mode == 'reflection':
            raise ValueError("pad_mode='reflection' paints objects without boxes; "
                             "use aug_transforms(..., pad_mode='zeros')")
        if mat is None and coord_tfm is None and sz is None: return self
        w,h = self.img_size
        old = self.as_subclass(Tensor)
        s = old.new_tensor([w, h, w, h])
        b = TensorBBox(old*2/s - 1, img_size=(w, h))
        b = TensorBBox.affine_coord(b, mat, coord_tfm, None, mode, pad_mode, align_corners).as_subclass(Tensor)
        if sz is not None: w,h = (sz, sz) if isinstance(sz, int) else (sz[1], sz[0])
        b = (b.clamp(-1, 1) + 1)*b.new_tensor([w, h, w, h])/2
        return PixelBBox(torch.where((old == 0).all(-1, keepdim=True), 0., b), img_size=(w, h))

    def _do_crop_pad(self, sz, tl, orig_sz, resize_to=None, **kwargs):
        "fastai's `Resize` and crops of items move it as they move the picture: (w, h) `sz` from `tl` on, `resize_to`"
        old,out = self.as_subclass(Tensor),tuple(resize_to or sz)
        cut,start,end = (old.new_tensor([*o]*2) for o in (sz, tl, out))
        return PixelBBox(((old - start)*end/cut).clamp(min=0).minimum(end), img_size=out)

    def flip_lr(self): raise ValueError("fastai's flips of items leave boxes in pixels, and masks, where they are; "
                                        "JointTransform(size, flip=..., vflip=...) flips all alike")
    def dihedral(self, k): return self.flip_lr()

class RegionProposals(PixelBBox):
    "(k, 4) or (b, k, 4) boxes without labels, where objects may be; they stay or go whatever the objects do"

class BBoxLabels(TensorMultiCategory):
    "(n,) or (b, n) int64, one id per box; 0 = `#na#` = background = padding"
    @classmethod
    def create(cls, o): return cls(torch.as_tensor(np.asarray(o), dtype=torch.int64).view(-1))

class InstanceMasks(TensorMask):
    "(n, h, w) or (b, n, h, w) uint8, one mask of 0 and 1 per box"
    @classmethod
    def create(cls, o): return cls(torch.as_tensor(np.asarray(o)).to(torch.uint8))

    def affine_coord(self, mat=None, coord_tfm=None, sz=None, mode='nearest', pad_mode='zeros', align_corners=True):
        o = TensorMask(self.as_subclass(Tensor).float())
        o = TensorMask.affine_coord(o, mat, coord_tfm, sz, 'nearest', 'zeros', align_corners)
        return InstanceMasks(o.as_subclass(Tensor).round().to(torch.uint8))

class ObjectBBoxes(DisplayedTransform):
    "The boxes of an `Annotation`, in pixels"
    def encodes(self, a): return PixelBBox.create(object_bboxes(a), img_size=a.size)

class ObjectLabels(DisplayedTransform):
    """The ids of the objects of an `Annotation` in `vocab`, which begins with `NO_OBJECT`; -1 where an object is to be
    ignored (crowd, difficult)"""
    @checked()
    def __init__(self, vocab):
        if NO_OBJECT in vocab: raise ValueError(
            f"a class is called {NO_OBJECT!r}, which is fastai's word for no object, the class 0 of background and "
            "padding; drop these objects, or rename the class")
        self.vocab,self.o2i = [NO_OBJECT, *vocab],{o: i for i,o in enumerate(vocab, 1)}
    def encodes(self, a):
        if not self.o2i.keys() >= {*a.labels}: check_labels([a], self.vocab[1:])   # which says what is wrong
        ids = np.array([self.o2i[o] for o in a.labels], np.int64)
        return BBoxLabels.create(ids if a.ignore is None else np.where(a.ignore, -1, ids))
    def decodes(self, o): return MultiCategory([self.vocab[i] if i >= 0 else 'ignored' for i in o.tolist()])

def object_bboxes(a):
    "(n, 4) boxes of `a`; raises where they are not annotated"
    if a.bboxes is None: raise AnnotationError(
        f"{a.path}: boxes are not annotated (`bboxes` is None); a picture without objects has bboxes=np.zeros((0, 4)), "
        "others are to be left out")
    return a.bboxes

def object_masks(a):
    "The masks of `a`, one for each box; raises where they are not annotated"
    if a.masks is None and len(object_bboxes(a)): raise AnnotationError(
        f"{a.path}: {len(a.bboxes)} boxes, but no masks (`masks` is None); draw them, leave the picture out, or train "
        "on the boxes (`detection_dls`)")
    return a.masks or []

@checked()
def check_masks(a):
    """Raise `AnnotationError` for the first mask of `a` that cannot be read, or is empty while its object is not to be
    ignored; nothing is decoded"""
    for i,m in enumerate(object_masks(a)):
        ignored = a.ignore is not None and a.ignore[i]
        with _named(a, i):
            if isinstance(m, dict): some = rle_counts.unchecked(m)[1::2].any()
            # a canvas of one pixel: the outline is checked, and hardly anything is filled
            elif isinstance(m, (list, tuple)): some = len(m) and decode_mask(m, (1, 1)) is not None
            else: some = decode_mask.unchecked(m, a.size).any()
        if not some and not ignored: raise AnnotationError(
            f"{a.path}, masks, row {i} ({a.labels[i]}): the mask is empty, though there is a box; draw it, mark the "
            "object as to be ignored (`ignore`), or leave it out")

class ObjectMasks:
    """The masks of an `Annotation` as they are kept, until `JointTransform` lays them on the network's input: polygons
    are filled there, and what is not in view is never decoded"""
    @checked()
    def __init__(self, a):
        object_masks(a)
        self.a = a
    def __len__(self): return len(self.a.bboxes)
    def __repr__(self): return f"ObjectMasks({len(self)} of {self.a.path})"
    def polygons(self, i) -> list|None:   # of (m, 2) float64, pixels of the file
        "The mask of object `i` as polygons, `None` where it is something else"
        m = self.a.masks[i]
        if not isinstance(m, (list, tuple)): return None
        try:
            res = [np.asarray(p, np.float64).reshape(-1, 2) for p in m]
            if all(len(p) > 2 and np.isfinite(p).all() for p in res): return res
        except (TypeError, ValueError, OverflowError): pass
        self.decode(i)   # which says what is wrong
    def decode(self, i) -> np.ndarray:   # (h, w) bool
        "The mask of object `i`; an error names the file"
        with _named(self.a, i): return decode_mask.unchecked(self.a.masks[i], self.a.size)
    def columns(self, i) -> tuple[int,np.ndarray]:
        "The columns of the picture that hold some of object `i`, whose mask is run lengths, as of `rle_columns`"
        with _named(self.a, i): return rle_columns(self.a.masks[i], self.a.size)

@contextmanager
def _named(a, i):
    "A while in which a `ValueError` about the mask of object `i` of `a` becomes an `AnnotationError` that names both"
    try: yield
    except ValueError as e: raise AnnotationError(f"{a.path}, masks, row {i} ({a.labels[i]}): {e}") from None

class ObjectMasksEncode(DisplayedTransform):
    "The masks of an `Annotation`, not decoded"
    def encodes(self, a): return ObjectMasks(a)

class MasksDecoded(ItemTransform):
    "Raises where no `JointTransform` has laid the masks on the network's input: fastai's `Resize` does not know them"
    order = 3   # after the geometry
    def encodes(self, x):
        if any(isinstance(o, ObjectMasks) for o in x): raise ValueError(
            "masks follow the picture through a JointTransform only, and the item transforms have none: "
            "item_tfms=JointTransform(size) brings pictures, boxes and masks to one size")
        return x

def ObjectMasksBlock():
    "(n, h, w) masks of all objects of an `Annotation`, one for each box"
    return TransformBlock(type_tfms=ObjectMasksEncode(), item_tfms=MasksDecoded())

@checked()
def ObjectBlock(vocab):
    "Boxes in pixels and ids of all objects of an `Annotation`, padded to the most of a batch: two blocks"
    pad = dict(before_batch=pad_objects)
    return TransformBlock(type_tfms=ObjectBBoxes()),TransformBlock(type_tfms=ObjectLabels(vocab), dls_kwargs=pad)

@IntToFloatTensor
def encodes(self, o:InstanceMasks|ClassMask):
    # instances are eight times smaller than as int64; with classes fastai divides by 1 on the way
    return o if isinstance(o, InstanceMasks) else o.long()

class ProposalsEncode(DisplayedTransform):
    "The proposals for a picture: those of `proposals`, a callable picture -> (k, 4) boxes in pixels of it"
    input_types = IMAGE_TYPES
    def __init__(self, proposals): self.proposals = proposals
    def encodes(self, o):
        size = image_size(o) if isinstance(o, (str, os.PathLike)) else FileImage.create(o).size
        return RegionProposals.create(check_boxes(self.proposals(o), o), img_size=size)

@checked(proposals=FUNCTION)
def ProposalsBlock(
    proposals,   # callable: path, PIL image or array -> (k, 4) boxes in pixels, as `Proposals`
):
    "Boxes without labels of a picture, padded with zeros to the most of a batch"
    return TransformBlock(type_tfms=ProposalsEncode(proposals), dls_kwargs=dict(before_batch=pad_objects))

def pad_objects(samples):
    """Samples of one shape each, for collate: pictures, class masks and instance masks grow right and down to the
    largest, objects to the most of the batch, and so do proposals"""
    # fastai's tensors look up their type at every `len` and `shape`
    with DisableTorchFunctionSubclass(): return _grown(samples)

def _grown(samples):
    def most(*types):
        return max((len(o) for s in samples for o in s if isinstance(o, types[0]) and not isinstance(o, types[1:])),
                   default=0)
    for s in samples:
        size = next((o.shape[:-3:-1] for o in s if isinstance(o, TensorImage)), None)
        for o in s:
            if size is None or not isinstance(o, PixelBBox) or o.img_size in (None, size): continue
            raise ValueError(f"the picture is {wh(size)}, but the boxes are of one of {wh(o.img_size)}: a transform of "
                             "items moved the one and not the other; let one JointTransform do it all")
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
