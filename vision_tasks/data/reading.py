"What all readers share: the size of an image file, and the loop over the images of a data set"
from __future__ import annotations
from concurrent.futures import ThreadPoolExecutor
import warnings
from .annotation import UNREADABLE, Annotation, AnnotationError
from .image import image_size

__all__ = ['size_of', 'read_all']

def size_of(path) -> tuple[int,int]:
    "`image_size` for readers: a file that is missing or no image is an `AnnotationError`"
    try: return image_size(path)
    except FileNotFoundError: why,todo = "no such image file", "mend the name or the folder"
    except UNREADABLE as e:  why,todo = f"cannot be read as an image ({e})", "replace the file"
    raise AnnotationError(f"{path}: {why}; {todo}, or drop the picture before reading")

def read_all(
    read,                 # item -> Annotation, or `AnnotationError`
    items,                # what there is to read, one item a picture
    on_error:str='raise', # 'raise': the first error ends the reading; 'drop': one warning counts the pictures left out
) -> list[Annotation]:    # in the order of `items`
    "`read` each of `items`, in threads, for the files that it opens: the loop that all readers share"
    if on_error not in ('raise', 'drop'): raise ValueError(f"on_error is 'raise' or 'drop', not {on_error!r}")
    def attempt(item):
        try: return read(item)
        except AnnotationError as e:
            if on_error == 'raise': raise
            return e
    with ThreadPoolExecutor() as ex: res = list(ex.map(attempt, items))
    bad = [o for o in res if isinstance(o, AnnotationError)]
    if bad:
        more = f"; and {len(bad)-3} more" if len(bad) > 3 else ''
        some = '; '.join(map(str, bad[:3]))
        warnings.warn(f"{len(bad)} of {len(res)} pictures are left out: {some}{more}", stacklevel=3)
    return [o for o in res if not isinstance(o, AnnotationError)]
