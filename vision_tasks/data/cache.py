"""Decoded images and class masks, kept for the next epoch: in memory that worker processes share, or in a folder

The first time that an image is needed it is decoded, reduced to what the views of its `JointTransform` can use, and
stored as uint8; later it costs a copy of the pixels instead of a decoder. Boxes, points and masks stay in pixels of the
file, so they are exact whatever the reduction"""
from __future__ import annotations
import hashlib, math, mmap, os, shutil, struct, time, zlib
from multiprocessing import context
from multiprocessing.reduction import DupFd
from pathlib import Path
from uuid import uuid4
import numpy as np
import torch
from PIL import Image
from ..warning import warn
from .annotation import Annotation
from .class_masks import MaskFile
from .image import resolve_grey_range
from .items import CachedImage, CachedMask, FileImage, digest
from .laying import reduction_of
from .targets import class_mask
from .views import JitterView

__all__ = []

# --- how large

_WHOLE = 2/3   # above this part of their sides images stay whole: little would be saved, and whole pixels are exact
_SPARE = 1.2   # larger than the largest view needs, since a reduced image is resampled a second time

def stored_scale(
    joint,                # `JointTransform`, or None
    size:tuple[int,int],  # (w, h) of the image
) -> float:               # in (0, 1]; 1: not reduced
    """The scale at which an image is stored: 1.2 times the largest at which the views of `joint` show it, but at
    least 1.7 times that of the whole image on the canvas for a view that does not say it; 1 where that is above 2/3.
    Images in a mosaic are seen at up to the largest of its scales"""
    if joint is None: return 1.
    looks = [joint.train, joint.valid, *([JitterView(joint.mosaic_scale)] if joint.mosaic else [])]
    s = _SPARE*max(max(_largest_scale(look, size, joint.size)) for look in looks)
    return 1. if s > _WHOLE else s

def _largest_scale(look, size, out):
    if hasattr(look, 'largest_scale'): return look.largest_scale(*size, out)
    return [1.7*n/m for n,m in zip(out, size)]

def reduced(im:FileImage, size:tuple[int,int]) -> np.ndarray:   # (h, w, 3) uint8
    """The pixels of `im` at `size`, (w, h), by Lanczos' filter, which loses least where they are resampled again. A
    JPEG is decoded at up to an eighth of its size, but at twice `size` or more"""
    if size == im.size: return np.ascontiguousarray(im.pixels().permute(1, 2, 0).numpy())
    t = im.pixels(tuple(2*n for n in size))
    (k,dx,dy),(w,h) = reduction_of(im, t),im.size
    box = dx/k,dy/k,(dx + w)/k,(dy + h)/k
    return np.array(Image.fromarray(t.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.LANCZOS, box))

# --- where

class SharedBytes:
    """Zeros that this process and its workers read and write. On Linux an anonymous file in memory, which is not bound
    by the size of /dev/shm; elsewhere shared memory of torch. It is not copied where a worker is forked, and attached
    where one is spawned"""
    def __init__(self, n:int, fd:int=None):
        self.n,self.fd = n,fd
        if fd is None and not hasattr(os, 'memfd_create'):
            self.tensor = torch.zeros(n, dtype=torch.uint8).share_memory_()
            return
        if fd is None:
            self.fd = os.memfd_create('vision_tasks')
            os.ftruncate(self.fd, max(n, 1))
        self.tensor = torch.frombuffer(mmap.mmap(self.fd, max(self.n, 1)), dtype=torch.uint8)[:self.n]

    def array(self, dtype, *shape, start=0) -> np.ndarray:
        "A part of the bytes as an array"
        n = math.prod(shape)*np.dtype(dtype).itemsize
        return self.tensor.numpy()[start:start + n].view(dtype).reshape(shape)

    def __reduce__(self):
        if self.fd is None: return _torch_bytes,(self.tensor,)
        return _attach,(self.n, DupFd(self.fd))

    def __del__(self):
        if getattr(self, 'fd', None) is not None: os.close(self.fd)

def _attach(n, fd): return SharedBytes(n, fd.detach())

def _torch_bytes(tensor):
    res = object.__new__(SharedBytes)
    res.n,res.fd,res.tensor = len(tensor),None,tensor
    return res

class InMemory:
    "Pixels of `n` entries in memory that worker processes share"
    def __init__(self,
        shapes, # (h, w, c) of each entry
        dtypes, # of each entry
    ):
        self.shapes,self.dtypes = shapes,dtypes
        sizes = nbytes(shapes, dtypes)
        self.starts = np.concatenate([[0], np.cumsum(-(-sizes//64)*64)])
        # pixels are written before the stamp of the file, so that an entry with a stamp is complete
        self.pixels,self.stamps = SharedBytes(int(self.starts[-1])),SharedBytes(len(sizes)*24)

    def get(self, i, path, stamp):
        "The pixels of entry `i`; None if it is empty, or the file has changed since"
        was = self._stamps()[i]
        if tuple(was) == stamp: return self._entry(i)
        if was.any(): warn("image files have changed since they were cached, and are decoded again and again: make "
                           "the DataLoaders anew")

    def put(self, i, path, stamp, pixels, content):
        if self._stamps()[i].any(): return
        self._entry(i)[:] = pixels
        self._stamps()[i] = stamp

    def _stamps(self): return self.stamps.array(np.int64, len(self.shapes), 3)
    def _entry(self, i):
        return self.pixels.array(self.dtypes[i], *self.shapes[i].tolist(), start=int(self.starts[i]))
    def filled(self): return int(self._stamps().any(1).sum())
    def __repr__(self): return "memory"

_MAGIC  = b'vt-pix1\n'
_HEADER = struct.Struct('<8s4q3q32sI')   # magic; h w c itemsize; stamp; digest of the file's bytes; CRC of the pixels
_BEGIN  = 128                            # of the pixels; the header's own CRC is behind it

class InFolder:
    """Pixels of entries in a folder, one file each, by the path of the image and the settings. An entry is valid while
    its image file has not changed: the same size and times, or else the same bytes. It is written under a temporary
    name and renamed; an entry that is cut or damaged is made again. Several processes may share the folder"""
    def __init__(self, folder, shapes, dtypes, names):
        self.folder,self.shapes,self.dtypes,self.names = Path(folder).expanduser(),shapes,dtypes,names
        self.seen = SharedBytes(len(shapes))   # entries whose pixels have been compared with their CRC
        self.folder.mkdir(parents=True, exist_ok=True)
        for o in self.folder.glob('??/.*.part'):   # of writers that were killed
            if time.time() - o.stat().st_mtime > 3600: o.unlink(missing_ok=True)

    def file(self, i) -> Path: return self.folder/self.names[i][:2]/self.names[i][2:]

    def get(self, i, path, stamp):
        "The pixels of entry `i`; None if there is none, it is damaged, or the file has other bytes now"
        shape,dtype = tuple(self.shapes[i].tolist()),np.dtype(self.dtypes[i])
        n = math.prod(shape)*dtype.itemsize
        try:
            with open(self.file(i), 'rb') as f:
                if os.fstat(f.fileno()).st_size != _BEGIN + n: return None
                m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)   # torch cannot use read-only memory
        except FileNotFoundError: return None
        head = m[:_HEADER.size]
        if zlib.crc32(head) != int.from_bytes(m[_HEADER.size:_HEADER.size+4], 'little'): return None
        magic,*fields,content,crc = _HEADER.unpack(head)
        if magic != _MAGIC or fields[:4] != [*shape, dtype.itemsize]: return None
        res = np.frombuffer(m, dtype, math.prod(shape), _BEGIN).reshape(shape)
        seen = self.seen.array(np.uint8, len(self.shapes))
        if not seen[i]:
            if zlib.crc32(res) != crc: return None
            seen[i] = 1
        if tuple(fields[4:]) != stamp:
            if content_of(path) != content: return None
            self.put(i, path, stamp, res, content)   # with the new stamp
        return res

    def put(self, i, path, stamp, pixels, content):
        head = _HEADER.pack(_MAGIC, *pixels.shape, pixels.dtype.itemsize, *stamp, content, zlib.crc32(pixels))
        head = (head + zlib.crc32(head).to_bytes(4, 'little')).ljust(_BEGIN, b'\0')
        file = self.file(i)
        part = file.with_name(f'.{file.name}.{uuid4().hex[:12]}.part')
        try:
            file.parent.mkdir(exist_ok=True)
            with open(part, 'wb') as f:
                f.write(head)
                f.write(pixels)
            os.replace(part, file)
        except OSError as e:
            part.unlink(missing_ok=True)
            raise OSError(e.errno, f"the cache cannot be written ({e.strerror}); make room, choose another folder, or "
                                   "train with cache=None", str(file)) from None

    def filled(self): return sum(self.file(i).exists() for i in range(len(self.names)))
    def __repr__(self): return f"folder {self.folder}"

def nbytes(shapes, dtypes) -> np.ndarray:
    "Bytes of each entry"
    return shapes.prod(1)*np.array([np.dtype(o).itemsize for o in dtypes])

def stamp_of(path) -> tuple[int,int,int]:
    "What changes when a file is written or replaced: its size, the time of its content, and that of its inode"
    s = os.stat(path)
    return s.st_size,s.st_mtime_ns,s.st_ctime_ns

def content_of(path) -> bytes:
    "The `digest` of a file: what tells whether one that was written again holds the same"
    return digest(Path(path).read_bytes())

def available_memory() -> int|None:
    "Bytes of memory that this process may still use, by the system and its control group; None if they do not tell"
    left = []
    try: left += [int(o.split()[1])*1024 for o in Path('/proc/meminfo').read_text().splitlines()
                  if o.startswith('MemAvailable')]
    except OSError:
        if 'SC_PHYS_PAGES' in getattr(os, 'sysconf_names', {}):   # no number of free pages: those that exist
            left.append(os.sysconf('SC_PHYS_PAGES')*os.sysconf('SC_PAGE_SIZE'))
    for most,used in (('memory.max', 'memory.current'),
                      ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes')):
        try: left.append(int(Path('/sys/fs/cgroup', most).read_text()) - int(Path('/sys/fs/cgroup', used).read_text()))
        except (OSError, ValueError): pass   # no such group, or 'max'
    return max(min(left), 0) if left else None

# --- the cache

class PixelCache:
    """Images, and class masks where there are some, of `annotations`; filled while they are used. Pickled, for instance
    with an exported learner, it becomes None; only worker processes get it"""
    def __init__(self,
        where,           # 'ram', or a folder
        annotations,     # list[Annotation], each image once or several times
        joint=None,      # `JointTransform` whose views show the images; None: images are stored whole
        grey_range=None, # as in `to_rgb`
        n_classes=None,  # of the class masks; None: they are not cached
    ):
        self.grey_range,self.n_classes = resolve_grey_range(grey_range),n_classes
        images = {str(a.path): a for a in annotations}
        masks  = {} if n_classes is None else {self._mask_key(a): a for a in annotations
                                               if a.mask is not None and not isinstance(a.mask, np.ndarray)}
        self.at = {k: i for i,k in enumerate([*images, *masks])}
        self.sizes = np.array([a.size for a in (*images.values(), *masks.values())], np.int64).reshape(-1, 2)
        scales = {s: stored_scale(joint, s) for s in {*map(tuple, self.sizes.tolist())}}
        kept = [_reduced_size(s, scales[s]) for s in map(tuple, self.sizes[:len(images)].tolist())]
        self.steps = np.array([max(int(1/scales[s]), 1) for s in map(tuple, self.sizes.tolist())], np.int32)
        few = [_strided_size(s, k) for s,k in zip(self.sizes[len(images):].tolist(), self.steps[len(images):].tolist())]
        shapes = np.array([*((h, w, 3) for w,h in kept), *((h, w, 1) for w,h in few)], np.int64).reshape(-1, 3)
        wide   = np.int32 if (n_classes or 0) > 255 else np.uint8
        dtypes = [np.uint8]*len(images) + [wide]*len(masks)
        total = int(nbytes(shapes, dtypes).sum())
        if isinstance(where, str) and where == 'ram':
            check_memory(total, len(images))
            self.store = InMemory(shapes, dtypes)
        else:
            names = [self._name(k, i, shapes[i]) for k,i in self.at.items()]
            self.store = InFolder(where, shapes, dtypes, names)
            check_disk(self.store, nbytes(shapes, dtypes), len(images))
        self.total = total
        print(f"cache: {len(images)} images{f' and {len(masks)} class masks' if masks else ''} take "
              f"{total/1e9:.2f} GB in {self.store!r}, filled in the first epoch", flush=True)

    def _mask_key(self, a):
        table = a.mask.table if isinstance(a.mask, MaskFile) else None
        return f'{_mask_file(a)}\0{"" if table is None else table.digest}'

    def _name(self, key, i, shape):
        path,_,table = key.partition('\0')
        what = 1,os.path.abspath(path),table,shape.tolist(),self.sizes[i].tolist()
        what += (self.n_classes, self.steps[i]) if '\0' in key else (self.grey_range,)
        return hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest()

    def image(self,
        o, # what `FileImage.create` takes
    ) -> FileImage:
        "The image of `o`: from the cache if it is a file of it, or an `Annotation` of one; otherwise from its file"
        path = o.path if isinstance(o, Annotation) else o
        i = self.at.get(str(path)) if isinstance(path, (str, os.PathLike)) else None
        if i is None or isinstance(o, Annotation) and o.size != tuple(self.sizes[i].tolist()):
            return FileImage.create(o, self.grey_range)
        try: stamp = stamp_of(path)
        except OSError: return FileImage.create(o, self.grey_range)   # raises
        pixels = self.store.get(i, path, stamp)
        if pixels is None:
            im = FileImage.create(o, self.grey_range)
            if im.size != tuple(self.sizes[i].tolist()): return im    # of a path, whose file is another image now
            h,w,_ = self.store.shapes[i].tolist()
            content = im.content()
            pixels = reduced(im, (w, h))
            self.store.put(i, path, stamp, pixels, content)
        return CachedImage.of(torch.from_numpy(pixels).permute(2, 0, 1), tuple(self.sizes[i].tolist()), str(path),
                              self.grey_range)

    def mask(self,
        a, # Annotation with `mask`
    ) -> CachedMask|None:
        "The class mask of `a`; None if it is not one of the cache"
        i = None if a.mask is None or isinstance(a.mask, np.ndarray) else self.at.get(self._mask_key(a))
        if i is None or a.size != tuple(self.sizes[i].tolist()): return None
        file,k = _mask_file(a),int(self.steps[i])
        try: stamp = stamp_of(file)
        except OSError: return None
        m = self.store.get(i, file, stamp)
        if m is None:
            content = content_of(file)
            m = np.ascontiguousarray(class_mask(a, self.n_classes)[k//2::k, k//2::k, None], self.store.dtypes[i])
            self.store.put(i, file, stamp, m, content)
        return CachedMask(torch.from_numpy(m[...,0]), a.size, k)

    def __repr__(self):
        return f"PixelCache({self.store.filled()} of {len(self.at)} entries, {self.total/1e9:.2f} GB in {self.store!r})"

    # a cache is shared, not copied; pickled with a learner it would be the data set
    def __copy__(self): return self
    def __deepcopy__(self, memo): return self
    def __reduce_ex__(self, protocol):
        return super().__reduce_ex__(protocol) if context.get_spawning_popen() is not None else (_no_cache, ())

def _mask_file(a): return a.mask.path if isinstance(a.mask, MaskFile) else a.mask

def _no_cache(): return None

def _reduced_size(size, scale): return size if scale == 1 else tuple(max(1, round(n*scale)) for n in size)

def _strided_size(size, k): return tuple(len(range(k//2, n, k)) or 1 for n in size)

_PART = .8   # of the memory that is available

def check_memory(need:int, n:int):
    "Raise `ValueError` if `need` bytes, times the processes that train together, are not available"
    left,world = available_memory(),int(os.environ.get('WORLD_SIZE', 1))
    if left is None or need*world <= left*_PART: return
    times = f" in each of {world} processes" if world > 1 else ''
    raise ValueError(f"cache='ram': {n} images take {need/1e9:.2f} GB{times}, but {left/1e9:.2f} GB of memory are "
                     "available, of which a fifth is left for training; pass a folder, cache='path/to/folder', a "
                     "smaller `size`, or cache=None")

def check_disk(store, sizes, n:int):
    "Raise `ValueError` if the entries that do not exist yet do not fit the disk of the folder"
    need = int(sum(s for i,s in enumerate(sizes.tolist()) if not store.file(i).exists()))
    left = shutil.disk_usage(store.folder).free
    if need <= left: return
    raise ValueError(f"cache={str(store.folder)!r}: {n} images need {need/1e9:.2f} GB more, but the disk has "
                     f"{left/1e9:.2f} GB; make room, choose a folder on another disk, a smaller `size`, or cache=None")
