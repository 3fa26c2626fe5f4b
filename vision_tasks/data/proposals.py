"Region proposals of image files, computed once and cached: boxes without labels, for networks that need them"
from __future__ import annotations
from contextlib import suppress
from hashlib import blake2b
from inspect import signature
from io import BytesIO
import os
from pathlib import Path
import pickle
from zipfile import BadZipFile, ZipFile
import zlib
import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from fastcore.basics import defaults
from fastcore.parallel import parallel
from PIL import Image
from ..arguments import (COUNT, FLAG, FUNCTION, PATH, TEXT, Kind, brief, checked, choice, either, instance, several,
                         whole)
from ..ops.proposals import grid_proposals, random_proposals, selective_search
from .annotation import Annotation
from .image import decode_image, open_image, read_bytes, to_rgb
from .writing import remove_leftovers, replacing
from ..warning import warn

__all__ = ['Proposals']

VERSION = 2   # of the boxes that the methods below return; a new number invalidates all cached boxes

def _random(image, n=2000, seed=0): return random_proposals(image.shape[1::-1], n, seed)
def _grid(image, n=2000, aspects=(.5, 1, 2), levels=5): return grid_proposals(image.shape[1::-1], n, aspects, levels)

METHODS = dict(selective_search=selective_search, random=_random, grid=_grid)
BROKEN  = OSError, EOFError, ValueError, KeyError, RuntimeError, BadZipFile, zlib.error   # of a bad .npz

_ITEM = either(PATH, instance(Annotation, Image.Image, what="an Annotation, a PIL image"),
               Kind("pixels (h, w, 3) or (h, w)", lambda o: len(o.shape) in (2, 3) and min(o.shape) > 0))

class Proposals:
    """The proposals of an image, computed at the first call and cached. The cache key is the content of the image file,
    the method and all of its parameters; if one of them changes, boxes are recomputed. A file that is renamed in its
    folder keeps its boxes. Old cache files are not deleted. Raises `ValueError` for a function without a name"""
    @checked(method=either(choice(*METHODS), FUNCTION), n=COUNT, cache=PATH, workers=whole(0, 1024), name=TEXT)
    def __init__(self,
        method='selective_search', # 'selective_search', 'random', 'grid', or a function of (image (h, w, 3) uint8,
                                   # n=..., **kwargs) that returns (k, 4) boxes x1 y1 x2 y2 in pixels, best first
        n:int=2000,                # boxes per image at most
        cache=None,                # folder of the cache; None (default): `.proposals` beside each image
        workers:int=None,          # processes of `prepare`; None (default): one per core; 0: this process
        name:str=None,             # name of your own function, for the cache key; change it when the function changes
        **kwargs,                  # arguments of the method, such as those of `selective_search`
    ):
        if callable(method):
            if name is None: raise ValueError("a function as method needs a name for the cache; pass name='...', "
                                              "and another name when the function changes")
            self.method = method
        else: self.method,name = METHODS[method],f'{method} {VERSION}'
        self.n,self.workers,self.kwargs,self.warned,self.tidied = n,workers,kwargs,False,set()
        self.cache = None if cache is None else Path(cache)
        # with the defaults, so that passing them makes no difference; a wrong name is a TypeError here
        try: parameters = signature(self.method)
        except ValueError as e:
            raise ValueError(f"method: expected a function of (image, n=...), got {brief(method)} ({e})") from e
        bound = parameters.bind(None, n=n, **kwargs)
        bound.apply_defaults()
        self.key = f"{name} {sorted(bound.arguments.items(), key=lambda o: o[0])!r}".encode()

    @checked(item=_ITEM)
    def __call__(self, item) -> np.ndarray:   # (k, 4) float32 x1 y1 x2 y2, pixels of the image as shown; k <= n
        """The proposals of `item`: a path, an `Annotation`, or an image (PIL, array), which is cached only with
        `cache`. Warns once if the cache cannot be written"""
        bboxes,_,broken = self._get(item, must_keep=False)
        if broken: self._warn([broken])
        return bboxes

    @checked(items=several(_ITEM, "a list of paths, or of Annotation"), progress=FLAG)
    def prepare(self,
        items,              # list of paths or Annotations
        progress:bool=True, # show a progress bar
    ) -> int:               # number of items whose proposals were not cached yet
        """Compute and cache the proposals of all `items`, in parallel processes. Raises `ValueError` if the method
        cannot be pickled, `OSError` if the cache cannot be written"""
        workers = defaults.cpus if self.workers is None else self.workers
        if workers:
            try: pickle.dumps(self.method)
            except (pickle.PicklingError, AttributeError, TypeError) as e:
                raise ValueError(f"the method {self.method!r} cannot be sent to other processes ({e}): define it at "
                                 "the top level of a module, or pass workers=0") from e
        for folder in {self._folder(o) for o in items}: self._tidy(folder)   # once, not in every process
        todo = parallel(self._keep, items, n_workers=workers, progress=progress)
        if broken := [b for _,b in todo if b]: self._warn(broken)
        return sum(new for new,_ in todo)

    def _keep(self, item): return self._get(item)[1:]

    def _get(self, item, must_keep=True):
        "(boxes, whether they were computed now, the broken cache file or None)"
        path = item.path if isinstance(item, Annotation) else item
        if path is None: raise ValueError("an Annotation without a file has no pixels; pass the image itself")
        if isinstance(path, (str, Path)):
            data = read_bytes(path)
            image = lambda: _decode(data, path)
            file = self._file(self._folder(path), data)
        else:
            pixels = np.asarray(to_rgb(path) if isinstance(path, Image.Image) else path)
            image = lambda: pixels
            file = self.cache and self._file(self.cache, f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes())
        broken = None
        if file:
            try: return _read(file, self.n),False,None
            except (FileNotFoundError, NotADirectoryError): pass
            except BROKEN: broken = file
        bboxes = self._find(image(), path)
        try:
            if file:
                self._tidy(file.parent)
                _write(file, bboxes)
        except OSError as e:
            if must_keep: raise
            if not self.warned: warn(f"{e}; until then they are recomputed at each call")
            self.warned = True
        return bboxes,True,broken

    def _folder(self, item):
        path = item.path if isinstance(item, Annotation) else item
        return self.cache or (Path(path).parent/'.proposals' if isinstance(path, (str, Path)) else None)

    def _tidy(self, folder):
        "Remove temporary files of killed processes in `folder`, once"
        if folder is None or folder in self.tidied: return
        self.tidied.add(folder)
        with suppress(OSError): remove_leftovers(folder)

    def _file(self, folder, data):
        return folder/f"{blake2b(self.key + blake2b(data).digest(), digest_size=16).hexdigest()}.npz"

    def _find(self, image, path):
        return check_boxes(self.method(image, n=self.n, **self.kwargs), path)[:self.n]

    def _warn(self, files):
        more = f", and {len(files)-1} more" if len(files) > 1 else ''
        warn(f"proposals are recomputed, because their cache file is broken: {files[0]}{more}")

def check_boxes(boxes, image) -> np.ndarray:   # (k, 4) float32
    "The boxes that a method returned for `image`, a path or pixels. Raises `ValueError` if they are not boxes"
    what = image if isinstance(image, (str, os.PathLike)) else "an image without a file"
    b = np.asarray(boxes, np.float32)
    if b.size == 0: b = b.reshape(0, 4)
    if b.ndim != 2 or b.shape[1] != 4 or not np.isfinite(b).all() or (b[:,:2] > b[:,2:]).any():
        got = f"shape {b.shape}, {b[:2].tolist()} ..." if b.ndim else repr(boxes)
        raise ValueError(f"{what}: expected the method to return (k, 4) finite x1 y1 x2 y2 with x1 <= x2, y1 <= "
                         f"y2, got {got:.160}; fix the method")
    return b

def _decode(data, path):   # -> (h, w, 3) uint8
    with open_image(BytesIO(data), path) as im: return np.asarray(decode_image(im, path))

_READ_HEADER = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}

def _read(file, n):   # -> (k, 4); k <= n
    # read all bytes first: numpy does not close a broken file
    data = BytesIO(read_bytes(file))
    # check size and header first: a small file may inflate to many gigabytes, or claim to
    with ZipFile(data) as z:
        if z.getinfo('bboxes.npy').file_size > 16*n + 1024: raise ValueError("more than n boxes")
        with z.open('bboxes.npy') as f: shape,_,dtype = _READ_HEADER[read_magic(f)](f)
    if len(shape) != 2 or shape[0] > n or shape[1] != 4 or dtype != np.float32: raise ValueError(f"{dtype} {shape}")
    data.seek(0)
    with np.load(data, allow_pickle=False) as z: return z['bboxes']   # zip verifies the checksum

def _write(file, bboxes):
    "Write all or nothing: two processes may write the same file, and a killed one leaves no truncated file"
    try:
        with replacing(file, tidy=False) as part, part.open('wb') as f: np.savez_compressed(f, bboxes=bboxes)
    except OSError as e:
        raise OSError(f"proposals cannot be cached in {file.parent} ({e}); "
                      "pass cache=<a writable folder> to `Proposals`") from e
