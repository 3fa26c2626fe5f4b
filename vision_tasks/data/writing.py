"""Files are replaced whole or not at all, and so are data sets of several files; no two inputs are written to one file.

A data set of several files is written under temporary names, brought to the disk, and renamed at the end. While its
files are renamed, each of their folders has a file `.incomplete`. Where a process is killed before, the old set is
there; after, the new set; in between, `check_complete` refuses the folder, and so do the readers"""
from __future__ import annotations
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
import errno, json, os, re, shutil, time
from pathlib import Path
from uuid import uuid4
try: import fcntl
except ImportError: fcntl = None   # Windows
from .errors import AnnotationError

__all__ = ['replacing', 'writing_set', 'check_complete', 'remove_leftovers', 'check_outputs', 'check_once']

MARKER = '.incomplete'   # in each folder of a set while its files are renamed; the names of these files, as json

# --- one file

@contextmanager
def replacing(
    path,           # file to write; its folder is made where it does not exist
    tidy:bool=True, # remove what killed writers of `path` left; it takes a look at all names in the folder
):                  # a temporary path in the same folder, which is an empty file, for the block to write to
    """A block that writes `path` whole or not at all: what it wrote is flushed to the disk and renamed at its end.
    Where it is killed, fails or finds the disk full, the old file is unchanged; an error removes the temporary file,
    and an `OSError` names `path`. A link is followed, and the mode of the old file is kept"""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():   # /dev/stdout or a pipe is written, not replaced
        yield path
        return
    with ExitStack() as after:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_target(path)
            if tidy: remove_leftovers(path.parent, path)
            part = after.enter_context(_locked_part(path))
        with _naming(path, part):
            yield part
            _flush(part)
            if path.exists(): shutil.copymode(path, part)
            os.replace(part, path)

def _part_name(path, key, suffix):   # hidden, with a suffix that no reader takes; cut: a name has 255 bytes at most
    return path.with_name(f'.{path.name[:40]}.{key}.{suffix}')

@contextmanager
def _locked_part(path):
    "A temporary file beside `path`, locked for as long as this process lives, so that it is known to be in use"
    for _ in range(100):
        part = _part_name(path, uuid4().hex[:12], 'part')
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None: os.close(fd)   # an open file cannot be renamed there
        try:
            # another process may have taken it for a leftover before it was locked
            if fcntl is not None and _lock(fd, wait=True) and not os.fstat(fd).st_nlink: continue
            yield part
            return
        finally:
            with suppress(OSError): part.unlink()
            if fcntl is not None: os.close(fd)
    raise OSError(errno.EBUSY, f"temporary files beside {path} are removed by another process")

def remove_leftovers(
    folder,
    path=None, # only what is left of writing this file; None (default): of any single file
):
    "Remove the temporary files of writers that were killed; those of writers that live are locked, and stay"
    if fcntl is None: return
    begin = None if path is None else f'.{Path(path).name[:40]}.'
    with os.scandir(folder) as names: found = [o.path for o in names if _is_part(o.name, begin)]
    for o in found:
        with suppress(OSError), _opened(o) as fd:
            if _lock(fd): os.unlink(o)

def _is_part(name, begin):
    return (begin is None or name.startswith(begin)) and re.fullmatch(r'\..{1,40}\.[0-9a-f]{12}\.part', name, re.S)

@contextmanager
def _opened(path):
    fd = os.open(path, os.O_RDONLY)
    try: yield fd
    finally: os.close(fd)

def _lock(fd, wait=False):
    "Whether `fd` could be locked; False, too, in a file system that knows no locks"
    try: fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError: return False
    return True

@contextmanager
def _alone(folder):
    "A while in which no other process is in this block for `folder`; whether the file system knows locks"
    with _opened(folder) as fd:
        alone = _lock(fd, wait=True)
        try: yield alone
        finally:   # not by `close` alone: a process that was forked meanwhile holds the lock, too
            if alone: fcntl.flock(fd, fcntl.LOCK_UN)

def _check_target(path):
    if path.is_dir(): raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if path.exists() and not os.access(path, os.W_OK): raise PermissionError(errno.EACCES, "it is read-only")

def _flush(file):
    with open(file, 'rb+') as f: os.fsync(f.fileno())

def _flush_folder(folder):
    "Bring the names in `folder` to the disk, where the system can"
    if os.name == 'nt': return
    with suppress(OSError), _opened(folder) as fd: os.fsync(fd)

@contextmanager
def _naming(path, part=None):
    "A block whose errors name `path`, and not its temporary file `part`"
    try: yield
    except OSError as e: raise _named(e, path, e.strerror if e.filename in (None, str(part)) else e) from e
    except UnicodeEncodeError as e:
        raise ValueError(f"{path} cannot be written: {e}; rename the file or label that holds it") from e

def _named(e, path, why):
    "The kind of `e` with a message that begins with `path`"
    there = "; the old file is unchanged" if path.is_file() else ''
    res = type(e)(f"{path} cannot be written ({why or e}){there}")
    res.errno = e.errno
    return res

# --- several files

@contextmanager
def writing_set(
    folders, # all folders that get files; made where they do not exist
):           # function of a path in one of them: a block that writes that file, as `replacing` does
    """A block that writes several files, all or none: they are renamed together at its end, in the order in which they
    were written. An error in the block leaves all old files unchanged, and no others. A kill while they are renamed
    leaves the marker `.incomplete` in `folders`, which `check_complete` refuses; so does an error then, and it says so.

    The set needs its space beside that of the old one until it is whole. Files that are not written again stay. Where
    an earlier writer was interrupted, all files that it may have replaced must be written again: `AnnotationError`
    otherwise. Two processes take turns where the first of their sorted folders is the same and the system has locks"""
    folders = sorted({Path(o).absolute() for o in folders})
    if not folders:
        yield None
        return
    for o in folders:
        with _naming(o): o.mkdir(parents=True, exist_ok=True)
    with ExitStack() as after:
        alone = fcntl is not None and after.enter_context(_alone(folders[0]))
        files = _Set(folders)
        try:
            if alone: files.remove_leftovers()
            yield files.write
            files.rename()
        finally: files.remove_staged()

class _Set:
    "The files of a set, under temporary names until `rename`"
    def __init__(self, folders):
        self.folders,self.key,self.numbers = folders,uuid4().hex[:12],count()
        self.staged,self.by_folder = {},{o: [] for o in folders}   # {temporary file: target}, {folder: names}

    @contextmanager
    def write(self, path):
        "A block that writes `path` under a temporary name"
        path = Path(path).absolute()
        assert path.parent in self.by_folder, path
        target = Path(os.path.realpath(path))
        part = _part_name(target, f'{self.key}-{next(self.numbers)}', 'staged')
        with _naming(target, part):
            _check_target(target)
            self.staged[part] = target
            self.by_folder[path.parent].append(path.name)
            yield part

    def rename(self):
        "Bring all files to the disk, then rename them, with the marker in their folders meanwhile"
        self.check_interrupted()
        # in threads, since a disk flushes many files together: a third to a quarter of the time of one by one
        with ThreadPoolExecutor(16) as ex: list(ex.map(self.flush, list(self.staged)))
        marked = self.mark()
        for part,target in list(self.staged.items()):
            try: os.replace(part, target)
            except OSError as e:
                raise type(e)(e.errno, f"{target} cannot be written ({e.strerror or e}), after other files of its set "
                                       "were; the set is incomplete: write it again") from e
            del self.staged[part]
        for o in marked: _flush_folder(o.parent)
        for o in marked: o.unlink()

    def flush(self, part):
        if part.stat().st_nlink > 1: return   # a link to a file that is on the disk already
        target = self.staged[part]
        with _naming(target, part):
            _flush(part)
            if target.exists(): shutil.copymode(target, part)

    def check_interrupted(self):
        "Raise where an earlier writer was interrupted, and a file that it may have replaced is not among those to come"
        for folder,names in self.by_folder.items():
            _,before = _read_marker(folder)
            lost = [folder/o for o in sorted({*before} - {*names}) if names and os.path.lexists(folder/o)]
            if lost: raise AnnotationError(f"a writer was interrupted in {folder}, and {len(lost)} of its files would "
                                           f"stay, old or new, among those written now; the first is {lost[0]}. "
                                           "Delete them, or write them too; nothing was written")

    def mark(self):   # -> the markers
        "Put the marker into each folder that gets files, or into none"
        mine,marked = [],[o/MARKER for o,names in self.by_folder.items() if names]
        try:
            for o in marked:
                if not os.path.lexists(o): mine.append(o)
                data = dict(lock=os.path.relpath(self.folders[0], o.parent), names=self.by_folder[o.parent])
                with replacing(o) as part: part.write_text(json.dumps(data), encoding='utf-8')
            for o in marked: _flush_folder(o.parent)
        except BaseException:
            for o in mine:
                with suppress(OSError): o.unlink()
            raise
        return marked

    def remove_leftovers(self):
        "Remove the temporary files of sets whose writers were killed; that none lives is what the lock says"
        for folder in self.folders:
            with os.scandir(folder) as names:
                found = [o.path for o in names if re.fullmatch(r'\..{1,40}\.[0-9a-f]{12}-\d+\.staged', o.name, re.S)]
            for o in found:
                with suppress(OSError): os.unlink(o)

    def remove_staged(self):
        for part in self.staged:
            with suppress(OSError): part.unlink()

def check_complete(
    *folders, # those that a data set is read from; ones that do not exist are complete
):
    """Raise `AnnotationError` where a writer was interrupted while it replaced the files of one of `folders`. A writer
    that is still at work is waited for, up to a minute"""
    for o in sorted({*map(Path, folders)}):
        if os.path.lexists(o/MARKER) and not _finishes(o):
            raise AnnotationError(f"a writer was interrupted in {o}, whose files may be of an old and a new set; write "
                                  f"the set again, or delete {o/MARKER} if you know that the files are good")

def _read_marker(folder):   # -> the folder that a living writer has locked, or None; the names of its files
    try: data = json.loads((folder/MARKER).read_text(encoding='utf-8'))
    except (OSError, ValueError): return None,[]   # there is none, or one made by hand
    return (folder/data['lock'],data['names']) if isinstance(data, dict) and {*data} >= {'lock', 'names'} else (None,[])

def _finishes(folder):
    "Wait for the writer of `folder`, if it lives; whether the marker is gone"
    lock,_ = _read_marker(folder)
    end = time.monotonic() + 60
    with suppress(OSError):
        while lock and fcntl is not None and time.monotonic() < end:
            with _opened(lock) as fd:
                if _lock(fd): break
            time.sleep(.02)
    return not os.path.lexists(folder/MARKER)

# --- what may be written

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
