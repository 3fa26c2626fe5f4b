"Proposals of picture files, found once and kept: boxes without labels, for nets that do not find their own"
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

VERSION = 1   # of the boxes that the methods below give: one more makes them anew wherever they are kept

def _random(image, n=2000, seed=0): return random_proposals(image.shape[1::-1], n, seed)
def _grid(image, n=2000, aspects=(.5, 1, 2), levels=5): return grid_proposals(image.shape[1::-1], n, aspects, levels)

METHODS = dict(selective_search=selective_search, random=_random, grid=_grid)
BROKEN  = OSError, EOFError, ValueError, KeyError, RuntimeError, BadZipFile, zlib.error   # of a bad .npz

_ITEM = either(PATH, instance(Annotation, Image.Image, what="an Annotation, a PIL image"),
               Kind("pixels (h, w, 3) or (h, w)", lambda o: len(o.shape) in (2, 3) and min(o.shape) > 0))

class Proposals:
    """The proposals of a picture, found at the first call and read from then on. What is kept goes by the bytes of the
    picture's file, the method and all of its parameters: where one of them changes, the boxes are found anew. A file
    that is renamed within its folder is still known. What was kept before a change stays until somebody deletes it"""
    @checked(method=either(choice(*METHODS), FUNCTION), n=COUNT, cache=PATH, workers=whole(0, 1024), name=TEXT)
    def __init__(self,
        method='selective_search', # that, 'random', 'grid', or a function of (image (h, w, 3) uint8, n=..., **kwargs)
                                   # that gives (k, 4) boxes x1 y1 x2 y2 in pixels, the most promising first
        n:int=2000,                # boxes of a picture at most
        cache=None,                # folder of what is kept; None: `.proposals` beside each picture
        workers:int=None,          # processes of `prepare`; None: one a core; 0: this one
        name:str=None,             # of a function of your own; give another one when what it does changes
        **kwargs,                  # of the method, as of `selective_search`
    ):
        if callable(method):
            if name is None: raise ValueError("a function as method needs a name, by which its boxes are kept; "
                                              "pass name='...', and another one when the function changes")
            self.method = method
        else: self.method,name = METHODS[method],f'{method} {VERSION}'
        self.n,self.workers,self.kwargs,self.told,self.tidied = n,workers,kwargs,False,set()
        self.cache = None if cache is None else Path(cache)
        # with the defaults, so that it is one whether they are written out or not; a wrong name is a TypeError now
        try: parameters = signature(self.method)
        except ValueError as e:
            raise ValueError(f"method: expected a function of (image, n=...), got {brief(method)} ({e})") from e
        bound = parameters.bind(None, n=n, **kwargs)
        bound.apply_defaults()
        self.key = f"{name} {sorted(bound.arguments.items(), key=lambda o: o[0])!r}".encode()

    @checked(item=_ITEM)
    def __call__(self, item) -> np.ndarray:   # (k, 4) float32 x1 y1 x2 y2, pixels of the picture as shown; k <= n
        """The proposals of `item`: a path, an `Annotation`, or a picture (PIL, array), which is kept only with `cache`.
        Where nothing can be kept, a warning says so, once"""
        bboxes,_,broken = self._get(item, must_keep=False)
        if broken: self._warn([broken])
        return bboxes

    @checked(items=several(_ITEM, "a list of paths, or of Annotation"), progress=FLAG)
    def prepare(self, items, progress:bool=True) -> int:   # how many were found now, and not before
        "Find and keep the proposals of all `items`, paths or Annotations, in parallel processes"
        workers = defaults.cpus if self.workers is None else self.workers
        if workers:
            try: pickle.dumps(self.method)
            except (pickle.PicklingError, AttributeError, TypeError) as e:
                raise ValueError(f"the method {self.method!r} cannot go to other processes ({e}): write it as a `def` "
                                 "that stands in no other one, or pass workers=0") from e
        for folder in {self._folder(o) for o in items}: self._tidy(folder)   # once, not in every process
        todo = parallel(self._keep, items, n_workers=workers, progress=progress)
        if broken := [b for _,b in todo if b]: self._warn(broken)
        return sum(new for new,_ in todo)

    def _keep(self, item): return self._get(item)[1:]

    def _get(self, item, must_keep=True):
        "(boxes, whether they were found now, the file that should have held them and is broken or None)"
        path = item.path if isinstance(item, Annotation) else item
        if path is None: raise ValueError("an Annotation without a file has no pixels here; pass the picture itself")
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
            if not self.told: warn(f"{e}; until then they are found anew each time")
            self.told = True
        return bboxes,True,broken

    def _folder(self, item):
        path = item.path if isinstance(item, Annotation) else item
        return self.cache or (Path(path).parent/'.proposals' if isinstance(path, (str, Path)) else None)

    def _tidy(self, folder):
        "Remove what killed processes left in `folder`, once"
        if folder is None or folder in self.tidied: return
        self.tidied.add(folder)
        with suppress(OSError): remove_leftovers(folder)

    def _file(self, folder, data):
        return folder/f"{blake2b(self.key + blake2b(data).digest(), digest_size=16).hexdigest()}.npz"

    def _find(self, image, path):
        return check_boxes(self.method(image, n=self.n, **self.kwargs), path)[:self.n]

    def _warn(self, files):
        more = f", and {len(files)-1} more" if len(files) > 1 else ''
        warn(f"proposals are found anew, because the file that held them is broken: {files[0]}{more}")

def check_boxes(boxes, picture) -> np.ndarray:   # (k, 4) float32
    "What a method or a function gave for `picture`, a path or pixels; `ValueError` where these are no boxes"
    what = picture if isinstance(picture, (str, os.PathLike)) else "a picture without a file"
    b = np.asarray(boxes, np.float32)
    if b.size == 0: b = b.reshape(0, 4)
    if b.ndim != 2 or b.shape[1] != 4 or not np.isfinite(b).all() or (b[:,:2] > b[:,2:]).any():
        got = f"shape {b.shape}, {b[:2].tolist()} ..." if b.ndim else repr(boxes)
        raise ValueError(f"{what}: expected of the method (k, 4) finite x1 y1 x2 y2 with x1 <= x2, y1 <= y2, "
                         f"got {got:.160}; mend the method")
    return b

def _decode(data, path):   # -> (h, w, 3) uint8
    with open_image(BytesIO(data), path) as im: return np.asarray(decode_image(im, path))

_READ_HEADER = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}

def _read(file, n):   # -> (k, 4); k <= n
    # the bytes first: numpy leaves a broken file open
    data = BytesIO(read_bytes(file))
    # size and header first: a small file may inflate to many gigabytes, or claim that it does
    with ZipFile(data) as z:
        if z.getinfo('bboxes.npy').file_size > 16*n + 1024: raise ValueError("more than n boxes")
        with z.open('bboxes.npy') as f: shape,_,dtype = _READ_HEADER[read_magic(f)](f)
    if len(shape) != 2 or shape[0] > n or shape[1] != 4 or dtype != np.float32: raise ValueError(f"{dtype} {shape}")
    data.seek(0)
    with np.load(data, allow_pickle=False) as z: return z['bboxes']   # zip checks its sum

def _write(file, bboxes):
    "All or nothing, so that two processes may write the same file, and one that is killed leaves none that is cut"
    try:
        with replacing(file, tidy=False) as part, part.open('wb') as f: np.savez_compressed(f, bboxes=bboxes)
    except OSError as e:
        raise OSError(f"proposals cannot be kept in {file.parent} ({e}); "
                      "pass cache=<a folder that can be written> to `Proposals`") from e
