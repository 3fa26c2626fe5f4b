"Files are replaced whole or not at all, and no two inputs are written to one file"
from __future__ import annotations
from contextlib import contextmanager, suppress
import errno, os, shutil
from pathlib import Path
from uuid import uuid4
from .annotation import AnnotationError

__all__ = ['replacing', 'check_outputs', 'check_once']

@contextmanager
def replacing(
    path,   # file to write; its folder is made where it does not exist
):          # a temporary path in the same folder, for the block to write to
    """A block that writes `path` whole or not at all: what it wrote is flushed to the disk and renamed at its end.
    Where it is killed, fails or finds the disk full, the old file is unchanged; an error removes the temporary file,
    and an `OSError` names `path`. A link is followed, and the mode of the old file is kept"""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():   # /dev/stdout or a pipe is written, not replaced
        yield path
        return
    # hidden, with a suffix that no reader takes; cut, since a name has 255 bytes at most
    part = path.with_name(f'.{path.name[:40]}.{uuid4().hex[:12]}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir(): raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if path.exists() and not os.access(path, os.W_OK): raise PermissionError(errno.EACCES, "it is read-only")
        yield part
        with part.open('rb+') as f: os.fsync(f.fileno())
        if path.exists(): shutil.copymode(path, part)
        os.replace(part, path)
    except OSError as e: raise _named(e, path, e.strerror if e.filename in (None, str(part)) else e) from e
    except UnicodeEncodeError as e:
        raise ValueError(f"{path} cannot be written: {e}; rename the file or label that holds it") from e
    finally:
        with suppress(OSError): part.unlink()

def _named(e, path, why):
    "The kind of `e` with a message that begins with `path`"
    there = "; the old file is unchanged" if path.is_file() else ''
    res = type(e)(f"{path} cannot be written ({why or e}){there}")
    res.errno = e.errno
    return res

def check_outputs(
    files,            # paths to write, one for each of `sources`
    sources,          # paths that they are made from
    keep=(),          # further paths that must not be written over
    todo:str="rename one",
):
    "Raise `AnnotationError` where two of `sources` would be written to one file, or a file would replace a source"
    owners,taken = {},{_place(o) for o in (*sources, *keep)}
    for file,source in zip(files, sources):
        place = _place(file)
        if place in owners: raise AnnotationError(f"{source} and {owners[place]} would both become {file}; {todo}; "
                                                  "nothing was written")
        if place in taken: raise AnnotationError(f"{file} is an image or mask of these annotations, and what is made "
                                                 f"from {source} would be written over it; choose another folder; "
                                                 "nothing was written")
        owners[place] = source

def check_once(
    annotations,      # list[Annotation] with paths
):
    "Raise `AnnotationError` where two annotations are of one image file, which a file format holds once"
    owners = {}
    for i,a in enumerate(annotations):
        j = owners.setdefault(os.path.normcase(os.path.abspath(a.path)), i)
        if i != j: raise AnnotationError(f"{a.path} appears twice, in annotations {j} and {i}; put its objects into "
                                         "one annotation, or drop one; nothing was written")

def _place(path): return os.path.normcase(os.path.realpath(path))
