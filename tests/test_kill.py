"A process that is killed while it replaces files leaves the old set, the new set, or a clear error; never a mixture"
import os, random, time
from functools import cache
import pytest, torch
from killing import WRITERS, Case, drawn, learners_files, random_kills, read, set_weights, weights
import killing
from vision_tasks.data import writing
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.proposals import Proposals
from vision_tasks.data.writing import MARKER, check_complete, replacing, writing_set
from vision_tasks.training.files import load_learner

FILES = ['coco', 'via', 'dlc', 'sheet', 'proposals', 'save', 'export']   # one file, or files that are kept one by one
SETS  = ['yolo', 'voc', 'masks', 'ids', 'crops', 'shapes', 'figures']

@pytest.fixture(scope='module')
def anns(tmp_path_factory): return drawn(tmp_path_factory.mktemp('drawn'), 4)

@pytest.fixture(scope='module', autouse=True)
def learners(anns, tmp_path_factory):
    "Writers and readers of a learner's files, as long as these tests run"
    with learners_files(anns, tmp_path_factory.mktemp('learners')): yield

@pytest.fixture(scope='module')
def cases(anns, tmp_path_factory):
    root = tmp_path_factory.mktemp('cases').resolve()
    return cache(lambda name: Case(name, anns, root/name))

@pytest.fixture
def case(request, cases):
    res = cases(request.param)
    res.reset()
    return res

def calls_of(case):
    "Calls of the writer of a set, the numbers of those that rename, the number of markers"
    calls = case.calls()
    # a marker's temporary file is removed, if need be, and the marker itself
    return calls,[i for i,o in enumerate(calls) if o == 'replace'],calls.count('unlink')//2

def hidden(folder): return [o.name for o in folder.rglob('.*')]

def test_every_writer_is_here(): assert {*FILES, *SETS} == {*WRITERS}

@pytest.mark.parametrize('case', FILES, indirect=True)
def test_a_file_is_old_or_new_wherever_its_writer_is_killed(case):
    calls = case.calls()
    for k in {calls.index('replace'), len(calls) - 1}: assert case.kill_before_call(k) in ('old', 'new')
    case.write(1)
    assert read(case.name, case.anns, case.to) == case.states[1]
    assert not hidden(case.to) or case.name == 'proposals'

@pytest.mark.parametrize('case', SETS, indirect=True)
def test_a_set_is_old_or_new_or_refused_wherever_its_writer_is_killed(case):
    calls,renames,markers = calls_of(case)
    assert calls[-markers:] == ['unlink']*markers and len(renames) > markers
    first = renames[markers]                                       # of the set: the markers come before
    assert case.kill_before_call(first//2) == 'old' and hidden(case.to)
    for k in ((first + renames[-1] + 1)//2, len(calls) - 1): assert case.kill_before_call(k) == 'error'
    assert [o for o in hidden(case.to) if o == MARKER]
    case.write(1)
    assert read(case.name, case.anns, case.to) == case.states[1] and not hidden(case.to)

@pytest.mark.slow
@pytest.mark.parametrize('case', [*FILES, *SETS], indirect=True)
def test_nothing_is_lost_at_random_moments(case):
    found,_ = random_kills(case, 20, random.Random(case.name))
    assert {*found} <= {'old', 'new', 'error'}

@pytest.mark.slow
@pytest.mark.parametrize('case', SETS, indirect=True)
def test_nothing_is_lost_before_any_call(case):
    for k in range(len(case.calls())): assert case.kill_before_call(k) in ('old', 'new', 'error'), k

# --- what is left is cleaned up, and what is interrupted stays so until it is written again

def kill_within(case):
    "Kill the writer of a set in the middle of its renames"
    assert case.kill_before_call(calls_of(case)[1][-2]) == 'error'

@pytest.mark.parametrize('case', ['voc'], indirect=True)
def test_a_part_of_an_interrupted_set_does_not_pass_for_the_set(case):
    kill_within(case)
    some,before = case.anns[:2],hidden(case.to)
    with pytest.raises(AnnotationError, match=r"interrupted in .*JPEGImages|interrupted in .*Annotations") as e:
        WRITERS['voc'](some, case.to, 1)
    assert "Delete them, or write them too; nothing was written" in str(e.value) and case.verdict() == 'error'
    assert sorted(o for o in before if o == MARKER) == sorted(hidden(case.to))   # the rest was a dead writer's
    for file in (case.to/'Annotations').glob('*.xml'): file.unlink()
    WRITERS['voc'](case.anns, case.to, 1)
    assert case.verdict() == 'new'

@pytest.mark.parametrize('case', ['shapes'], indirect=True)
def test_the_marker_may_be_deleted_by_hand_or_made_by_hand(case):
    kill_within(case)
    message = r"a writer was interrupted in .*images, whose .*write the set again, or delete .*images/\.incomplete"
    with pytest.raises(AnnotationError, match=message):
        read('shapes', case.anns, case.to)
    for o in case.to.rglob(MARKER): o.unlink()
    read('shapes', case.anns, case.to)
    (case.to/'masks'/MARKER).write_text('not json')
    assert case.verdict() == 'error'
    case.write(1)
    assert case.verdict() == 'new'

@pytest.mark.parametrize('case', ['voc'], indirect=True)
def test_a_list_of_an_older_set_is_not_read_with_a_new_one(case):
    old = {p: p.read_bytes() for p in case.to.rglob('*') if p.is_file()}
    train = [killing.replace(a, split='train') for a in case.anns]
    with pytest.raises(AnnotationError, match=r"val.txt belongs to an older set: line 1 has .*, whose split is train"):
        WRITERS['voc'](train, case.to, 0)
    assert {p: p.read_bytes() for p in case.to.rglob('*') if p.is_file()} == old
    (case.to/'ImageSets'/'Main'/'val.txt').unlink()
    WRITERS['voc'](train, case.to, 0)
    assert {a.split for a in killing.read_voc(case.to)} == {'train'}

@pytest.mark.parametrize('case', ['masks'], indirect=True)
def test_a_set_may_be_written_in_parts(case):
    more = drawn(case.to.parent/'more', 7)[4:]
    WRITERS['masks'](more, case.to, 0)
    assert len(killing.read_masks([a.path for a in (*case.anns, *more)], case.to, killing.SHAPE_CODES)) == 7

@pytest.mark.skipif(writing.fcntl is None, reason="without locks nothing tells a leftover from a file in use")
def test_leftovers_of_killed_writers_are_removed_and_those_of_living_ones_stay(tmp_path):
    dead = [tmp_path/f'.a.txt.{"0"*12}.part', tmp_path/f'.a.txt.{"0"*12}-7.staged']
    others = [tmp_path/o for o in (f'.b.txt.{"0"*12}.part', '.a.txt.part', 'a.txt.part', '.a.txt.backup.part')]
    def leave():
        for o in (*dead, *others): o.write_text('')
    leave()
    with replacing(tmp_path/'a.txt') as part:
        part.write_text('1')
        with replacing(tmp_path/'a.txt') as second:
            second.write_text('2')
            assert part.exists() and not dead[0].exists() and dead[1].exists()
    leave()
    with writing_set([tmp_path]) as write, write(tmp_path/'a.txt') as part:
        part.write_text('3')
        assert not dead[1].exists()
    assert (tmp_path/'a.txt').read_text() == '3' and all(o.exists() for o in others)

@pytest.mark.skipif(writing.fcntl is None, reason="two writers take turns by locks")
def test_two_writers_of_a_folder_take_turns_and_a_reader_waits_for_a_living_one(tmp_path):
    with writing_set([tmp_path]) as write:
        with write(tmp_path/'a.txt') as part: part.write_text('1')
        pid = os.fork()
        if not pid:
            try:
                with writing_set([tmp_path]) as second:
                    with second(tmp_path/'a.txt') as part: part.write_text('2')
            finally: os._exit(0)
        time.sleep(.1)
        assert part.exists() and not (tmp_path/'a.txt').exists()
    os.waitpid(pid, 0)
    assert (tmp_path/'a.txt').read_text() == '2' and hidden(tmp_path) == []
    # a writer that takes a while between its renames
    pid = os.fork()
    if not pid:
        real = os.replace
        def slow(*args):
            real(*args)
            if args[1].name == MARKER: time.sleep(.3)
        os.replace = slow
        try:
            with writing_set([tmp_path]) as write:
                with write(tmp_path/'a.txt') as part: part.write_text('3')
        finally: os._exit(0)
    while not (tmp_path/MARKER).exists(): time.sleep(.005)
    check_complete(tmp_path)
    assert (tmp_path/'a.txt').read_text() == '3'
    os.waitpid(pid, 0)

def test_proposals_remove_what_killed_processes_left(anns, tmp_path):
    left = tmp_path/f'.abc.npz.{"0"*12}.part'
    for f in (lambda o: o.prepare(anns[:2], progress=False), lambda o: o(anns[2])):
        left.write_bytes(b'half')
        f(Proposals(killing.dots, n=20, cache=tmp_path, name='dots', workers=0, shift=2))
        assert not left.exists() and len(list(tmp_path.iterdir())) >= 2

# --- files of a learner that are cut, or something else

def cut(file):
    "Versions of `file` that are cut, empty, text or damaged in the middle"
    whole = file.read_bytes()
    yield from (whole[:int(len(whole)*o)] for o in (.001, .1, .5, .9))
    yield from (whole[:-1], bytes(len(whole)))
    yield from (b'', b'no model\n', b'PK', b'\x80', b'\x80\x02}q\x00', b'cos\nnothing\n.')
    i = whole.index(b'data.pkl') + 60
    yield whole[:i] + bytes(200) + whole[i+200:]

def test_a_learner_that_loads_a_torn_file_names_it_and_stays_as_it_is(learners, anns, tmp_path):
    learn = killing.learner(anns, tmp_path)
    set_weights(learn, 3)
    file,opt = learn.save('m'),learn.opt
    before = weights(learn)
    for i,data in enumerate(cut(file)):
        torn = tmp_path/'models'/'torn.pth'
        torn.write_bytes(data)
        for name in ('torn', torn):
            with pytest.raises(ValueError, match=r"torn.pth cannot be loaded.*not written by learn.save; use a copy"):
                learn.load(name)
        assert weights(learn) == before and learn.opt is opt, i
    with pytest.raises(FileNotFoundError, match="gone.pth"): learn.load('gone')
    # what is whole, but of another net, has torch's own error
    with pytest.raises(RuntimeError, match="loading state_dict"):
        torch.save({'other': torch.zeros(1)}, torn)
        learn.load('torn')

def test_load_learner_names_a_torn_file(anns, tmp_path):
    learn = killing.learner(anns, tmp_path)
    learn.export('m.pkl')
    assert weights(load_learner(tmp_path/'m.pkl')) == weights(learn)
    torn = tmp_path/'torn.pkl'
    for data in cut(tmp_path/'m.pkl'):
        torn.write_bytes(data)
        with pytest.raises(ValueError, match=r"torn.pkl cannot be loaded.*not written by learn.export; use a copy"):
            load_learner(torn)
    with pytest.raises(ValueError, match="m.pth holds a dict, not a learner; learn.load"): load_learner(learn.save('m'))
    with pytest.raises(FileNotFoundError, match="gone.pkl"): load_learner(tmp_path/'gone.pkl')
    with pytest.raises(ValueError, match="m.pkl.pth cannot be loaded .*objects.*not written by learn.save"): learn.load(
        (tmp_path/'m.pkl').rename(tmp_path/'models'/'m.pkl').rename(tmp_path/'models'/'m.pkl.pth'))

def test_vision_tasks_all_has_our_load_learner():
    import vision_tasks.all as ours
    assert ours.load_learner is load_learner
