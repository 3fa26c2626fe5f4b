"Item types: the tensors and images that an `Annotation` becomes on its way into a batch"
from __future__ import annotations
import errno, hashlib, io, os
import numpy as np
import torch
from torch import Tensor
from fastai.data.transforms import Categorize, Category, MultiCategory
from fastai.torch_core import TensorCategory, TensorMultiCategory
from fastai.vision.core import PILImage, TensorBBox, TensorMask, TensorPoint
from fasttransform import DisplayedTransform
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from ..arguments import came, checked, nearest
from .annotation import Annotation, unturned
from .image import wh
from .errors import AnnotationError
from .image import (bytes_of_jpeg, check_single, decode_image, decode_rgb, open_image, orientation, read_bytes,
                    resolve_grey_range, shown_size)
from .targets import (NO_OBJECT, REJECTED, check_labels, naming_object, object_bboxes, object_masks,
                      swap_points)
from ..ops.masks import decode_mask
from ..ops.rle import rle_columns
try: from torchvision.io import ImageReadMode, decode_jpeg
except ImportError: decode_jpeg = None     # torchvision plans to remove its decoders; Pillow decodes the same pixels

__all__ = ['FileImage', 'CachedImage', 'LabelSet', 'ClassId', 'OneClass', 'Keypoints', 'OneObject', 'ClassMask',
           'CachedMask', 'PixelBBox', 'RegionProposals', 'BBoxLabels', 'InstanceMasks', 'ObjectBBoxes', 'ObjectLabels',
           'ObjectMasks']

# --- images

def _bytes_of(path):
    "The bytes of the file at `path`. Raises `OSError` that says what to do"
    try: return read_bytes(path)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such image file; fix the path", str(path)) from None
    except IsADirectoryError:
        raise IsADirectoryError(errno.EISDIR, "a folder, not an image file; fix the path", str(path)) from None

class FileImage(PILImage):
    """An image that is decoded when its pixels are needed, then upright and RGB; `JointTransform` decodes no more than
    it needs"""
    _bytes = _open = _name = _grey_range = None
    exif = 1   # orientation of the file

    @classmethod
    def create(cls,
        o,               # path, `Annotation` whose `size` is that of the image, bytes of an image file, PIL image, or a
                         # uint8 array or tensor as in `array_size`, whose alpha channel, if any, is dropped
        grey_range=None, # as in `to_rgb`
    ):
        """The image of `o`. A JPEG opened by Pillow that is not loaded yet is read like its file, possibly at a reduced
        size; other pixels are used as they are. Raises `ValueError` for arrays of another shape or dtype, and
        `AnnotationError` for an `Annotation` of another size"""
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
        return cls(im.copy() if im is o else im)   # fastai changes the class of its input

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
        "Whether the pixels are decoded"
        return self._im is not None

    def decode(self,
        least:tuple[int,int]=None, # (w, h) in pixels: a JPEG may be decoded smaller, but not below; None: full size
    ) -> Image.Image:
        "The pixels as a plain RGB image. Raises `OSError` if the file is broken"
        return self if self.loaded else decode_image(self._file(), self._name, least, self._grey_range)

    def _file(self):
        im,self._open = self._open or open_image(io.BytesIO(self._bytes), self._name),None
        return im

    def pixels(self,
        least:tuple[int,int]=None, # as in `decode`
    ) -> Tensor:                   # (3, h, w) uint8
        "The pixels as a tensor; torchvision decodes plain JPEGs, to the same values and faster"
        if not self.loaded:
            im = self._open = self._file()
            # Pillow makes a JPEG 2, 4 or 8 times smaller
            fits = least is None or min(im.width/least[0], im.height/least[1]) < 2
            plain = im.format == 'JPEG' and im.mode in ('RGB', 'L') and orientation(im) == 1
            if decode_jpeg is not None and plain and fits:
                try: return decode_jpeg(torch.frombuffer(self._bytes, dtype=torch.uint8), mode=ImageReadMode.RGB)
                except RuntimeError: pass   # Pillow reads it, or raises a better error
        return pil_to_tensor(self.decode(least))

    def load(self):
        if not self.loaded and self._bytes is not None:
            self._im,self._bytes = self.decode().im,None
        return super().load()

    def content(self) -> bytes:
        "A digest of the bytes of the file, which is not decoded yet"
        return digest(self._bytes)

def digest(data) -> bytes:
    "32 bytes that tell the contents of files apart"
    return hashlib.blake2b(data, digest_size=32).digest()

class CachedImage(FileImage):
    """An image whose pixels are in a cache, possibly reduced, while `size` is that of its file. Where whole pixels are
    wanted, or more than there are, the file is decoded"""
    @classmethod
    def of(cls,
        pixels:Tensor,        # (3, h, w) uint8
        size:tuple[int,int],  # (w, h) of the file
        name:str,             # its path
        grey_range=None,      # as in `to_rgb`
    ):
        "The image of cached pixels"
        self = cls(Image.Image())
        self._pixels,self._name,self._mode,self._size,self._grey_range = pixels,name,'RGB',tuple(size),grey_range
        return self

    @property
    def whole(self) -> bool:
        "Whether the cached pixels are those of the file"
        return (self._pixels.shape[2], self._pixels.shape[1]) == self._size

    def original(self) -> FileImage:
        "The image of the file"
        return FileImage.create(self._name, self._grey_range)

    def pixels(self, least=None): return self._pixels if self.whole else self.original().pixels(least)

    def cached_pixels(self) -> Tensor:   # (3, h, w) uint8
        "The cached pixels, whatever their size"
        return self._pixels

    def decode(self, least=None):
        if self.loaded: return self
        return Image.fromarray(self._pixels.permute(1, 2, 0).numpy()) if self.whole else self.original().decode(least)

    def load(self):
        if not self.loaded: self._im = self.decode().im
        return super().load()

def array_size(o) -> tuple[int,int]:
    """(w, h) of an image as an array (h, w), (h, w, c), or as a tensor (h, w), (c, h, w), c = 1, 3 or 4 channels. A
    tensor with channels last, and an array with channels first, are accepted if their shape is unambiguous"""
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
    raise ValueError(f"{what} as an image is {usual}, also with 1 or 4 channels; got {shape}" +
                     (": pass several images as a list" if len(shape) == 4 else ""))

def _image_of_array(o) -> Image.Image:
    (h,w),first = _hw(o)
    if isinstance(o, Tensor): o = o.as_subclass(Tensor).cpu().numpy()
    if o.dtype != np.uint8:
        raise ValueError(f"an array or tensor as an image holds uint8 in 0..255, not {o.dtype}; scale and cast it "
                         "first: (x*255).round().astype('uint8') where it is in 0..1")
    if first: o = o.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(o[...,0] if o.ndim == 3 and o.shape[2] == 1 else o))

# inputs of `FileImage.create`, by which fastai's `dls.test_dl(items)` finds the place of an item in the pipeline
IMAGE_TYPES = Annotation,str,os.PathLike,bytes,bytearray,Image.Image,np.ndarray,Tensor

# --- labels of an image

class LabelSet(TensorMultiCategory):
    "(c,) float, 1 for each label of the image"

class ClassId(TensorCategory):
    "() int64, the id of the class of an image"

class OneClass(Categorize):
    "A name to its `ClassId` in `vocab` and back; -1 is `REJECTED`"
    @checked()
    def __init__(self, vocab): super().__init__(vocab=list(vocab), sort=False)
    def encodes(self, o):
        if o in self.vocab.o2i: return ClassId(self.vocab.o2i[o])
        raise AnnotationError(f"label {o!r} is not in the vocab {list(self.vocab)}{nearest(o, self.vocab)}")
    def decodes(self, o): return Category(REJECTED if int(o) < 0 else self.vocab[int(o)])

class Keypoints(TensorPoint):
    """(k, 2) or (b, k, 2) points with their `flip_pairs`; nan: not marked. Every transform that mirrors the image,
    fastai's batch transforms too, swaps the pairs; a point that a batch transform moves out of the image becomes nan"""
    flip_pairs = None
    def set_meta(self,
        x,             # tensor with the metadata
        as_copy=False, # copy the metadata
    ):
        "Take the metadata of `x`, except what is already set: the size that a transform of fastai has just set"
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

class OneObject(Categorize):
    "Class name to its id in `vocab` and back. Raises `AnnotationError` for other names"
    @checked()
    def __init__(self,
        vocab, # list of class names
    ): super().__init__(vocab=list(vocab), sort=False)
    def encodes(self, o):
        if o in self.vocab.o2i: return TensorCategory(self.vocab.o2i[o])
        if o == NO_OBJECT: raise AnnotationError(
            f"an image without an object, but the vocab {list(self.vocab)} has no class {NO_OBJECT!r} for it; "
            f"drop such images, or train with vocab=[{NO_OBJECT!r}, ...]")
        raise AnnotationError(f"label {o!r} is not in the vocab {list(self.vocab)}{nearest(o, self.vocab)}")
    def decodes(self, o): return Category(self.vocab[int(o)])

class OneBox(DisplayedTransform):
    """(1, 4) of (n, 4) boxes in [-1, 1], of which at most one remains; nan if a crop has removed it from the image"""
    order = 3   # after the geometry, before images become tensors
    def encodes(self, o:TensorBBox):
        b = o.as_subclass(Tensor).clamp(-1, 1)[:1]
        if not len(b): b = torch.full((1, 4), torch.nan)
        return TensorBBox(torch.where((b[:,2:] > b[:,:2]).all(1, keepdim=True), b, torch.nan))

def as_bbox(o):
    "(n, 4) numbers as a fastai `TensorBBox` of float32, a copy"
    return TensorBBox(torch.tensor(np.asarray(o), dtype=torch.float32).view(-1, 4))

# --- a class for every pixel

class ClassMask(TensorMask):
    "(h, w) or (b, h, w) class index of every pixel, 255: void"

class CachedMask:
    "A class mask of which a cache has every `step`-th pixel in both directions; `JointTransform` resamples it"
    def __init__(self,
        pixels:Tensor,       # (h, w) class indices: those of the file at rows and columns step//2, step//2 + step, ...
        size:tuple[int,int], # (w, h) of the file
        step:int=1,          # file pixels between two of them
    ): self.pixels,self.size,self.step = pixels,size,step
    def __repr__(self): return f"CachedMask({wh(self.size)}, step={self.step})"

# --- objects: boxes, their labels, their masks

class PixelBBox(TensorBBox):
    "(n, 4) or (b, n, 4) float x1 y1 x2 y2 in pixels of the image, whose (w, h) is `img_size`"
    @classmethod
    def create(cls,
        o,             # (n, 4) boxes in pixels
        img_size=None, # (w, h) of the image
    ):
        "The boxes of an array or list, copied"
        return cls(torch.tensor(np.asarray(o), dtype=torch.float32).view(-1, 4), img_size=img_size)

    def affine_coord(self, mat=None, coord_tfm=None, sz=None, mode='nearest', pad_mode='zeros', align_corners=True):
        "fastai's batch transforms move boxes with the image; rows of zeros are padding and stay zero"
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
        "fastai's `Resize` and crops of items move boxes too: a window of (w, h) `sz` at `tl`, to `resize_to`"
        old,out = self.as_subclass(Tensor),tuple(resize_to or sz)
        cut,start,end = (old.new_tensor([*o]*2) for o in (sz, tl, out))
        return PixelBBox(((old - start)*end/cut).clamp(min=0).minimum(end), img_size=out)

    def flip_lr(self): raise ValueError("fastai's flips of items do not move boxes in pixels and masks; "
                                        "use JointTransform(size, flip=..., vflip=...), which flips all of them")
    def dihedral(self,
        k, # ignored
    ): return self.flip_lr()

class RegionProposals(PixelBBox):
    "(k, 4) or (b, k, 4) boxes without labels, where objects may be; kept or dropped independently of the objects"

class BBoxLabels(TensorMultiCategory):
    "(n,) or (b, n) int64, one id per box; 0 = `#na#` = background = padding"
    @classmethod
    def create(cls,
        o, # (n,) ids
    ): return cls(torch.as_tensor(np.asarray(o), dtype=torch.int64).view(-1))

class InstanceMasks(TensorMask):
    "(n, h, w) or (b, n, h, w) uint8, one mask of 0 and 1 per box"
    @classmethod
    def create(cls,
        o, # (n, h, w) of 0 and 1
    ): return cls(torch.tensor(np.asarray(o), dtype=torch.uint8))

    def affine_coord(self, mat=None, coord_tfm=None, sz=None, mode='nearest', pad_mode='zeros', align_corners=True):
        o = TensorMask(self.as_subclass(Tensor).float())
        o = TensorMask.affine_coord(o, mat, coord_tfm, sz, 'nearest', 'zeros', align_corners)
        return InstanceMasks(o.as_subclass(Tensor).round().to(torch.uint8))

class ObjectBBoxes(DisplayedTransform):
    "The boxes of an `Annotation`, in pixels"
    def encodes(self, a): return PixelBBox.create(object_bboxes(a), img_size=a.size)

class ObjectLabels(DisplayedTransform):
    """The ids of the objects of an `Annotation`, from 1 (0 is `NO_OBJECT`); -1 for ignored objects (crowd, difficult).
    Raises `ValueError` if a class is called `NO_OBJECT`, and `AnnotationError` for labels that are not in the vocab"""
    @checked()
    def __init__(self,
        vocab, # list of class names, without `NO_OBJECT`
    ):
        if NO_OBJECT in vocab: raise ValueError(
            f"a class is called {NO_OBJECT!r}, fastai's name for no object, which is class 0 of background and "
            "padding; drop these objects, or rename the class")
        self.vocab,self.o2i = [NO_OBJECT, *vocab],{o: i for i,o in enumerate(vocab, 1)}
    def encodes(self, a):
        if not self.o2i.keys() >= {*a.labels}: check_labels([a], self.vocab[1:])   # raises
        ids = np.array([self.o2i[o] for o in a.labels], np.int64)
        return BBoxLabels.create(ids if a.ignore is None else np.where(a.ignore, -1, ids))
    def decodes(self, o): return MultiCategory([self.vocab[i] if i >= 0 else 'ignored' for i in o.tolist()])

class ObjectMasks:
    """The masks of an `Annotation`, not decoded until `JointTransform` rasterizes them at the size of the network's
    input; masks outside the view are never decoded"""
    @checked()
    def __init__(self,
        a, # Annotation with boxes and masks
    ):
        object_masks(a)
        self.a = a
    def __len__(self): return len(self.a.bboxes)
    def __repr__(self): return f"ObjectMasks({len(self)} of {self.a.path})"
    def polygons(self,
        i,            # number of the object
    ) -> list|None:   # of (m, 2) float64, pixels of the file
        "The mask of an object as polygons, None for an RLE or array. Raises `AnnotationError` that names the file"
        m = self.a.masks[i]
        if not isinstance(m, (list, tuple)): return None
        try:
            res = [np.asarray(p, np.float64).reshape(-1, 2) for p in m]
            if all(len(p) > 2 and np.isfinite(p).all() for p in res): return res
        except (TypeError, ValueError, OverflowError): pass
        self.decode(i)   # raises
    def decode(self,
        i,               # number of the object
    ) -> np.ndarray:     # (h, w) bool
        "The mask of an object. Raises `AnnotationError` that names the file"
        with naming_object(self.a, i): return decode_mask.unchecked(self.a.masks[i], self.a.size)
    def columns(self,
        i, # number of the object, whose mask is an RLE
    ) -> tuple[int,np.ndarray]:
        "The first column of an object, and its columns, as in `rle_columns`. Raises `AnnotationError`"
        with naming_object(self.a, i): return rle_columns(self.a.masks[i], self.a.size)
