import errno, os, resource, signal, stat, subprocess, sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
import pytest
from PIL import Image
from killing import WRITERS, one_class, plain, points_of, proposals
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.coco import write_coco
from vision_tasks.data.formats.instance_masks import write_instance_masks
from vision_tasks.data.formats.masks import write_masks
from vision_tasks.data.formats.points import write_dlc
from vision_tasks.data.synthetic import SHAPE_CODES, draw_shapes
from vision_tasks.data.formats.via import write_via
from vision_tasks.data.formats.voc import write_voc
from vision_tasks.data.writing import MARKER, check_outputs, replacing
from vision_tasks.data.formats.yolo import write_yolo
from vision_tasks.data.crops import crop_instances

def files(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

# --- one file

def test_a_file_is_replaced_at_the_end_of_the_block_and_not_before(tmp_path):
    file = tmp_path/'new folder'/'a.txt'
    with replacing(file) as part:
        part.write_text('one')
        assert part.parent == file.parent and not file.exists()
    assert files(tmp_path) == {Path('new folder/a.txt'): b'one'}
    with replacing(file) as part:
        part.write_text('two')
        assert file.read_text() == 'one'
    assert files(tmp_path) == {Path('new folder/a.txt'): b'two'}

@pytest.mark.parametrize('error', [ValueError('no'), KeyboardInterrupt(), SystemExit(1), OSError(errno.ENOSPC, 'full')])
def test_an_error_in_the_block_leaves_the_old_file_and_no_other(tmp_path, error):
    file = tmp_path/'a.txt'
    file.write_text('old')
    with pytest.raises(type(error)), replacing(file) as part:
        part.write_text('half')
        raise error
    assert files(tmp_path) == {Path('a.txt'): b'old'}

def test_an_error_of_the_system_names_the_file_and_keeps_its_kind(tmp_path):
    file = tmp_path/'a.txt'
    for old in (False, True):
        with pytest.raises(OSError, match=r"a.txt cannot be written \(No space left") as e, replacing(file) as part:
            raise OSError(errno.ENOSPC, 'No space left on device')
        assert e.value.errno == errno.ENOSPC and str(e.value).endswith("the old file is unchanged") == old
        file.write_text('old')
    with pytest.raises(IsADirectoryError, match="cannot be written .*folder"), replacing(tmp_path): pass
    with pytest.raises(OSError, match="a.txt/b.txt cannot be written"), replacing(file/'b.txt'): pass
    with pytest.raises(ValueError, match="a.txt cannot be written: .*surrogates"), replacing(file) as part:
        part.write_text('\udcff', encoding='utf-8')
    assert files(tmp_path) == {Path('a.txt'): b'old'}

@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
def test_a_read_only_file_stays(tmp_path):
    file = tmp_path/'a.txt'
    file.write_text('old'); file.chmod(0o444)
    with pytest.raises(PermissionError, match="a.txt cannot be written .*read-only"), replacing(file) as part:
        part.write_text('new')
    assert files(tmp_path) == {Path('a.txt'): b'old'}

def test_links_are_followed_modes_are_kept_and_pipes_are_written(tmp_path):
    file,link = tmp_path/'a.txt',tmp_path/'link'
    file.write_text('old'); file.chmod(0o640); link.symlink_to(file)
    with replacing(link) as part: part.write_text('new')
    assert link.is_symlink() and file.read_text() == 'new' and stat.S_IMODE(file.stat().st_mode) == 0o640
    plain = tmp_path/'plain'
    plain.write_text('')
    with replacing(tmp_path/'fresh') as part: part.write_text('')
    assert (tmp_path/'fresh').stat().st_mode == plain.stat().st_mode
    with replacing('/dev/null') as part: part.write_text('gone')
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)

def test_names_as_long_as_the_system_allows_are_written(tmp_path):
    for name in ('a'*251 + '.txt', 'ä'*125 + '.txt'):
        with replacing(tmp_path/name) as part: part.write_text('x')
    assert len(files(tmp_path)) == 2

def test_a_process_that_is_killed_leaves_the_old_file(tmp_path):
    file = tmp_path/'a.txt'
    file.write_text('old')
    code = ("import os, signal, sys; from vision_tasks.data.writing import replacing\n"
            "with replacing(sys.argv[1]) as part:\n"
            "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)")
    run = subprocess.run([sys.executable, '-c', code, str(file)], cwd=Path(__file__).parents[1])
    assert run.returncode == -signal.SIGKILL and file.read_text() == 'old'

def test_two_inputs_of_one_output_and_outputs_over_inputs_are_refused(tmp_path):
    a,b = tmp_path/'x'/'a.jpg',tmp_path/'y'/'a.png'
    out = [tmp_path/'z'/'a.txt']*2
    with pytest.raises(AnnotationError, match="y/a.png and .*x/a.jpg would both become .*z/a.txt; rename one; nothing"):
        check_outputs(out, [a, b])
    with pytest.raises(AnnotationError, match="a.jpg is an image or mask of these annotations, .*choose another"):
        check_outputs([tmp_path/'z'/'..'/'x'/'a.jpg'], [a])
    with pytest.raises(AnnotationError, match="m.png is an image or mask"):
        check_outputs([tmp_path/'m.png'], [a], keep=[tmp_path/'m.png'])
    check_outputs([tmp_path/'a.txt', tmp_path/'b.txt'], [a, b], keep=[tmp_path/'m.png'])

# --- every writer

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "Drawn images with objects, of which some are for training and some for validation"
    anns = [a for a in draw_shapes(tmp_path_factory.mktemp('drawn'), 8, 64) if a.labels]
    return [replace(a, split=('train', 'valid')[i%2]) for i,a in enumerate(anns)]

# the files that list the others and come last
LAST = dict(yolo=('train.txt', 'val.txt', 'data.yaml'), voc=('train.txt', 'val.txt'))

@contextmanager
def full_disk(most):
    "A while in which the system refuses to make a file larger than `most` bytes"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, old[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)

@contextmanager
def failing_rename(k):
    "A while in which the rename number `k`, from 0, fails; a list of the names that were renamed before"
    done,asked,real = [],count(),os.replace
    def rename(part, file):
        if Path(file).name != MARKER and next(asked) >= k: raise OSError(errno.EIO, 'Input/output error')
        real(part, file)
        if Path(file).name != MARKER: done.append(Path(file).name)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, 'replace', rename)
        yield done

@pytest.fixture(params=[k for k in WRITERS if k != 'proposals'])
def writer(request, images, tmp_path):
    "(write(version), the folder, its files of version 0, those of version 1, the names that come last)"
    write,last = WRITERS[request.param],LAST.get(request.param, ())
    res = []
    for k in (0, 1):
        write(images, tmp_path/f'only {k}', k)
        res.append(files(tmp_path/f'only {k}'))
    to = tmp_path/'only 0'
    assert res[0] != res[1]
    return lambda k: write(images, to, k),to,*res,last

@pytest.mark.parametrize('most', [0, 60])
@pytest.mark.filterwarnings('ignore')
def test_a_full_disk_leaves_every_file_whole(writer, most):
    write,to,old,new,last = writer
    with full_disk(most), pytest.raises(OSError, match=r"cannot be written \(.*File too large"): write(1)
    now = files(to)
    assert now.keys() == old.keys()
    for p,data in now.items(): assert data == old[p] or data == new[p] and len(data) <= most, p
    assert all(now[p] == old[p] for p in now if p.name in last)
    write(1)
    assert {p: files(to)[p] for p in new} == new

def test_a_failure_at_any_file_leaves_each_old_or_new_and_the_lists_for_the_end(writer):
    write,to,old,new,last = writer
    with failing_rename(10**6) as names: write(1)
    assert names[len(names)-len(last):] == list(last) and not {*names[:len(names)-len(last)]} & {*last}
    for k in {0, len(names)//2, len(names)-1}:
        write(0)
        with failing_rename(k), pytest.raises(OSError, match="cannot be written .*Input/output error"): write(1)
        now = files(to)
        assert {p.name for p in now if p.name[0] == '.'} <= {MARKER}
        assert all(data in (old.get(p), new.get(p)) for p,data in now.items() if p.name != MARKER)

def test_proposals_that_cannot_be_kept_leave_no_file(images, tmp_path):
    with full_disk(60), pytest.raises(OSError, match="proposals cannot be cached in .*File too large"):
        proposals(images[:2], tmp_path, 0)
    assert files(tmp_path) == {}
    assert proposals(images[:2], tmp_path, 0) == 2 and proposals(images[:2], tmp_path, 0) == 0
    whole = files(tmp_path)
    with pytest.warns(UserWarning, match="is broken"): assert proposals(images[:2], tmp_path, 1) == 2
    assert files(tmp_path) == whole

# --- two inputs, one output

def test_crops_of_two_images_with_one_stem_are_refused_before_the_first_is_written(images, tmp_path):
    a = images[0]
    (tmp_path/'other').mkdir()
    for name in ('other/0001.png', f'{a.path.stem}.bmp'): Image.open(a.path).save(tmp_path/name)
    for other in (replace(a, path=tmp_path/'other'/a.path.name), replace(a, path=tmp_path/f'{a.path.stem}.bmp')):
        with pytest.raises(AnnotationError, match="would both become .*_0.png; rename one, or crop into a folder for"):
            crop_instances([a, other], tmp_path/'crops')
    assert not (tmp_path/'crops').exists()
    Image.open(a.path).save(tmp_path/'other'/f'{a.path.stem}_0.png')
    before = files(tmp_path/'other')
    there = [replace(a, path=tmp_path/'other'/f'{a.path.stem}_0.png'), replace(a, path=tmp_path/f'{a.path.stem}.bmp')]
    with pytest.raises(AnnotationError, match="_0.png is an image or mask of these annotations"):
        crop_instances(there, tmp_path/'other')
    assert files(tmp_path/'other') == before

def test_an_image_twice_is_refused_by_every_writer_that_names_files_by_it(images, tmp_path):
    a = images[0]
    for write in (lambda o: write_voc(o, tmp_path/'o'), lambda o: write_yolo(o, tmp_path/'o'),
                  lambda o: write_masks(o, tmp_path/'o', SHAPE_CODES), lambda o: crop_instances(o, tmp_path/'o'),
                  lambda o: write_instance_masks(one_class(o), tmp_path/'o'),
                  lambda o: write_via(plain(o), tmp_path/'o'/'a'),
                  lambda o: write_coco(o, tmp_path/'o'/'a.json'),
                  lambda o: write_dlc(points_of(o), tmp_path/'o'/'a.csv', list('abcde'), path=a.path.parent)):
        # through a detour, too
        for other in (images[0].path, a.path.parent/'..'/a.path.parent.name/a.path.name):
            with pytest.raises(AnnotationError, match="would both become|appears twice, in annotations 0 and 1"):
                write([images[0], replace(images[0], path=other)])
    assert not (tmp_path/'o').exists()
