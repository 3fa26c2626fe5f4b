"On a full disk, or one that cannot be written, every writer raises an `OSError` with a file's name and changes nothing"
import errno, gc, os, shutil, subprocess
from functools import cache
import pytest
from killing import WRITERS, Case, drawn, learners_files, read, watched
from vision_tasks.data.writing import MARKER

NAMES = [*WRITERS, 'save', 'export']
pytestmark = pytest.mark.filterwarnings('ignore')

@pytest.fixture(scope='module')
def anns(tmp_path_factory): return drawn(tmp_path_factory.mktemp('drawn'), 4)

@pytest.fixture(scope='module', autouse=True)
def learners(anns, tmp_path_factory):
    "Writers and readers of a learner's files, as long as these tests run"
    with learners_files(anns, tmp_path_factory.mktemp('learners')): yield

def files(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def full(): raise OSError(errno.ENOSPC, 'No space left on device')


def fails(case):
    "The writer raises an error with a file's name, and the old files are there, and no others"
    old = files(case.to)
    with pytest.raises(OSError, match=r"cannot be (written|kept)") as e: case.write(int(case.differs))
    assert str(case.to) in str(e.value) and files(case.to) == old

def spoil(case):
    "Proposals are written again where their file is broken"
    if not case.differs:
        for o in case.to.glob('*.npz'): o.write_bytes(b'')

@pytest.fixture(scope='module')
def cases(anns, tmp_path_factory):
    root = tmp_path_factory.mktemp('cases').resolve()
    return cache(lambda name: Case(name, anns, root/name))

@pytest.mark.parametrize('name', NAMES)
def test_a_disk_that_is_full_at_any_call_leaves_the_old_files(name, cases):
    case = cases(name)
    calls = [o for o in case.calls() if o != 'unlink'] if case.differs else ['open', 'replace']
    first = calls.index('replace')
    for k in sorted({0, first//2, first}):
        case.reset()
        spoil(case)
        with watched(k, full, ('open', 'fsync', 'replace', 'symlink')): fails(case)
    case.write(1)
    assert read(name, case.anns, case.to) == case.states[1]

@pytest.mark.parametrize('name', ['yolo', 'voc', 'masks', 'ids', 'crops', 'shapes', 'figures'])
def test_an_error_between_renames_says_that_the_set_is_incomplete(name, cases):
    case = cases(name)
    renames = case.calls().count('replace')
    case.reset()
    message = r"cannot be written \(No space left.*the set is incomplete: write it again"
    with watched(renames - 1, full, ('replace',)), pytest.raises(OSError, match=message): case.write(1)
    assert case.verdict() == 'error' and {o.name for o in case.to.rglob('.*')} == {MARKER}
    case.write(1)
    assert case.verdict() == 'new' and not [*case.to.rglob('.*')]

@pytest.fixture(scope='module')
def small_disk(tmp_path_factory):
    "A file system of 16 MB"
    disk = tmp_path_factory.mktemp('disk').resolve()
    mount = shutil.which('mount') and subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', disk],
                                                     capture_output=True)
    if not mount or mount.returncode: pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(['umount', disk], check=True)

def fill(file, leave):
    "Write `file` until `leave` bytes are free"
    space = os.statvfs(file.parent)
    with file.open('wb') as f: f.write(bytes(max(space.f_bavail*space.f_frsize - leave, 0)))

@pytest.fixture
def disk_case(request, anns, small_disk):
    "A `Case` on that file system, with the old files"
    case = Case(request.param, anns, small_disk/'set')
    shutil.rmtree(case.kept)
    case.write(0)
    yield case
    for o in small_disk.iterdir(): shutil.rmtree(o) if o.is_dir() else o.unlink()

@pytest.mark.parametrize('disk_case', NAMES, indirect=True)
def test_a_small_disk_that_is_full_or_read_only_keeps_the_old_files(disk_case, small_disk):
    case,filler = disk_case,small_disk/'filler'
    room = sum(len(o)//4096*4096 + 4096 for o in files(case.to).values())   # a file takes whole blocks
    spoil(case)
    # proposals are kept one by one, those that fit
    for leave in (0, 8192) if case.differs and room > 3*8192 else (0,):
        fill(filler, leave)
        fails(case)
        filler.unlink()
    gc.collect()   # the errors above, in cycles with their frames, hold the files that torch opened
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    try: fails(case)
    finally: subprocess.run(['mount', '-o', 'remount,rw', small_disk], check=True)
    case.write(1)
    assert read(case.name, case.anns, case.to) == case.states[1]
