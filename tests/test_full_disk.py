"On a full disk, or one that cannot be written, every writer raises an `OSError` with a file's name and changes nothing"
import errno, os, shutil, subprocess
import pytest
from killing import READERS, WRITERS, Case, add_learner, drawn, read, watched
from vision_tasks.data.writing import MARKER

NAMES = [*WRITERS, 'save', 'export']
pytestmark = pytest.mark.filterwarnings('ignore')

@pytest.fixture(scope='module')
def anns(tmp_path_factory): return drawn(tmp_path_factory.mktemp('drawn'), 6)

@pytest.fixture(scope='module', autouse=True)
def learners(anns, tmp_path_factory):
    "Writers and readers of a learner's files, as long as these tests run"
    old = dict(WRITERS),dict(READERS)
    add_learner(anns, tmp_path_factory.mktemp('learners'))
    yield
    for now,before in zip((WRITERS, READERS), old):
        now.clear()
        now.update(before)

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

@pytest.mark.parametrize('name', NAMES)
def test_a_disk_that_is_full_at_any_call_leaves_the_old_files(name, anns, tmp_path):
    case = Case(name, anns, tmp_path.resolve()/'set')
    calls = [o for o in case.calls() if o != 'unlink'] if case.differs else ['open', 'replace']
    first = calls.index('replace')
    for k in sorted({0, first//2, first}):
        case.reset()
        spoil(case)
        with watched(k, full, ('open', 'fsync', 'replace', 'symlink')): fails(case)
    case.write(1)
    assert read(name, anns, case.to) == case.states[1]

@pytest.mark.parametrize('name', ['yolo', 'voc', 'masks', 'ids', 'crops', 'shapes', 'figures'])
def test_an_error_between_renames_says_that_the_set_is_incomplete(name, anns, tmp_path):
    case = Case(name, anns, tmp_path.resolve()/'set')
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

@pytest.mark.parametrize('leave', [0, 8192])
@pytest.mark.parametrize('name', NAMES)
def test_a_small_disk_that_is_full_keeps_the_old_files(name, leave, anns, small_disk):
    case = Case(name, anns, small_disk/'set')
    shutil.rmtree(case.kept)
    try:
        case.write(0)
        sizes = [len(o) for o in files(case.to).values()]
        spoil(case)
        fill(small_disk/'filler', leave)
        # a file takes whole blocks; proposals are kept one by one, those that fit
        room = sum(o//4096*4096 + 4096 for o in sizes)
        if leave and (not case.differs or room < 3*leave): pytest.skip("it would fit")
        fails(case)
        (small_disk/'filler').unlink()
        case.write(1)
        assert read(name, anns, case.to) == case.states[1]
    finally:
        for o in small_disk.iterdir(): shutil.rmtree(o) if o.is_dir() else o.unlink()

@pytest.fixture
def read_only(small_disk):
    yield lambda: subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    subprocess.run(['mount', '-o', 'remount,rw', small_disk], check=True)
    for o in small_disk.iterdir(): shutil.rmtree(o)

@pytest.mark.parametrize('name', NAMES)
def test_a_read_only_disk_is_named(name, anns, small_disk, read_only):
    case = Case(name, anns, small_disk/'set')
    shutil.rmtree(case.kept)
    spoil(case)
    read_only()
    fails(case)
