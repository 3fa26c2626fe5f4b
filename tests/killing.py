"""Kill every writer while it replaces an old version of its files, and see what is left.

    python tests/killing.py            # a table: tried, survived, clear error, lost
    python tests/killing.py --n 100 voc yolo

A kill is survived where the reader gives the old set or the new one, whole. A clear error is a `ValueError` or
`OSError` that names a file or folder of the set. All else is lost: a mixture of old and new, other content, other
errors. Moments are drawn within the time that an undisturbed rewrite takes"""
import argparse, builtins, hashlib, io, os, random, shutil, signal, statistics, sys, tempfile, time, warnings
from collections import Counter
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch
import numpy as np, pandas as pd, torch
from fastai.torch_core import trainable_params
from torch import nn
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.formats.coco import read_coco, write_coco
from vision_tasks.data.class_masks import decode_class_mask
from vision_tasks.data.formats.instance_masks import read_instance_masks, write_instance_masks
from vision_tasks.data.formats.masks import read_masks, write_masks
from vision_tasks.data.formats.points import read_dlc, write_dlc
from vision_tasks.data.proposals import Proposals
from vision_tasks.data.synthetic import SHAPE_CODES, draw_figures, draw_shapes
from vision_tasks.data.formats.table import read_df
from vision_tasks.data.formats.via import read_via, write_via
from vision_tasks.data.formats.voc import read_voc, write_voc
from vision_tasks.data.formats.yolo import read_yolo, write_yolo
from vision_tasks.data.crops import crop_instances
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.show.sheet import contact_sheet
try: from vision_tasks.training.files import load_learner
except ImportError: from fastai.learner import load_learner   # earlier versions have no own

# --- what is written, in version 0 or 1, and how it is read back

def points_of(anns): return [Annotation(a.path, a.size, points=a.points[0]) for a in anns]
def one_class(anns): return [replace(a, labels=['shape']*len(a.labels)) for a in anns]
def plain(anns): return [replace(a, points=None, visible=None) for a in anns]
def smaller(anns, k): return [replace(a, bboxes=a.bboxes*(1 - k/9)) for a in plain(anns)]
def dots(image, n, shift): return np.arange(n)[:,None] + [0, 0, shift, shift]
def recoded(anns, k):
    return [replace(a, mask=(decode_class_mask(a.mask, a.size) + k)%len(SHAPE_CODES)) for a in anns]
def turned(anns, k):
    return [replace(a, masks=a.masks[::-1], bboxes=a.bboxes[::-1]) if k else a for a in one_class(anns)]

# name -> write(annotations, folder, version)
WRITERS = dict(
    coco=lambda anns, to, k: write_coco(smaller(anns, k), to/'a.json'),
    via=lambda anns, to, k: write_via(plain(anns)[:len(anns)-k], to/'a.json'),
    dlc=lambda anns, to, k: write_dlc(points_of(anns)[:len(anns)-k], to/'a.csv', list('abcde'),
                                      path=anns[0].path.parent),
    yolo=lambda anns, to, k: write_yolo([replace(a, masks=None) for a in smaller(anns, k)], to),
    voc=lambda anns, to, k: write_voc(smaller(anns, k), to),
    masks=lambda anns, to, k: write_masks(recoded(anns, k), to, SHAPE_CODES),
    ids=lambda anns, to, k: write_instance_masks(turned(anns, k), to),
    crops=lambda anns, to, k: crop_instances(anns, to, pad=.1 + k/2),
    shapes=lambda anns, to, k: draw_shapes(to, len(anns), 32, seed=k),
    figures=lambda anns, to, k: draw_figures(to, len(anns), 48, seed=k),
    sheet=lambda anns, to, k: contact_sheet(anns[:2-k], fname=to/'sheet.png'),
    # what is kept goes by its name, so that a file is found anew after its end is cut off
    proposals=lambda anns, to, k: proposals(anns, to, k))

def proposals(anns, to, k):
    for file in to.glob('*.npz') if k else (): file.write_bytes(file.read_bytes()[:50])
    return Proposals(dots, n=20, cache=to, name='dots', workers=0, shift=2).prepare(anns, progress=False)

def listed(to):
    "The images of a folder, as a table of them would be read"
    return read_df(pd.DataFrame(dict(fname=sorted(o.name for o in to.glob('*.png') if o.name[0] != '.'))), to)

READERS = dict(
    coco=lambda anns, to: read_coco(to/'a.json', anns[0].path.parent),
    via=lambda anns, to: read_via(to/'a.json', anns[0].path.parent),
    dlc=lambda anns, to: read_dlc(to/'a.csv', anns[0].path.parent),
    yolo=lambda anns, to: read_yolo(to/'data.yaml'),
    voc=lambda anns, to: read_voc(to),
    masks=lambda anns, to: read_masks([a.path for a in anns], to, SHAPE_CODES),
    ids=lambda anns, to: read_instance_masks([a.path for a in anns], to, 'shape'),
    crops=lambda anns, to: listed(to),
    shapes=lambda anns, to: read_masks(to/'images', to/'masks', SHAPE_CODES),
    figures=lambda anns, to: listed(to/'figures'),
    sheet=lambda anns, to: listed(to),
    proposals=lambda anns, to: [Proposals(dots, n=20, cache=to, name='dots', shift=2)(a).tobytes() for a in anns])

def content(o, to):
    "What was read, as something that compares"
    if not isinstance(o, Annotation): return o
    pixels = o.path.read_bytes() if to in o.path.parents else b''   # not those of the images that all versions share
    mask = None if o.mask is None else decode_class_mask(o.mask, o.size).tobytes()
    return hashlib.sha1(repr([o.path.name, o.size, o.labels, o.split, repr(o.masks), pixels, mask, *(
        None if v is None else v.tolist() for v in (o.bboxes, o.points, o.ignore))]).encode()).hexdigest()

def read(name, anns, to):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return [content(o, to) for o in READERS[name](anns, to)]

# --- learners

def learner(anns, to):
    anns = [Annotation(a.path, a.size, a.labels, split=('train', 'valid')[i%2]) for i,a in enumerate(anns)]
    arch = lambda n: nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 400, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                   nn.Linear(400, n))
    learn = multilabel_learner(multilabel_dls(anns, size=32, bs=2), arch(4), path=to, normalize=False,
                               splitter=trainable_params)
    learn.create_opt()
    return learn

def weights(learn): return [hashlib.sha1(o.detach().numpy().tobytes()).hexdigest() for o in learn.model.parameters()]

def set_weights(learn, k):
    with torch.no_grad():
        for o in learn.model.parameters(): o.fill_(k + 1)

def add_learner(anns, to):
    "Writers and readers of the files of a learner"
    learn,other = learner(anns, to),learner(anns, to)
    def writing(write):
        def f(anns, to, k):
            learn.path = to
            set_weights(learn, k)
            write()
        return f
    def loaded(anns, to):
        other.load(to/'models'/'m.pth')
        return weights(other)
    WRITERS.update(save=writing(lambda: learn.save('m')), export=writing(lambda: learn.export('m.pkl')))
    READERS.update(save=loaded, export=lambda anns, to: weights(load_learner(to/'m.pkl')))

@contextmanager
def learners_files(anns, to):
    "A while in which `WRITERS` and `READERS` have those of a learner's files"
    old = dict(WRITERS),dict(READERS)
    add_learner(anns, to)
    try: yield
    finally:
        for now,before in zip((WRITERS, READERS), old):
            now.clear()
            now.update(before)

# --- killing

def verdict(name, anns, to, old, new):
    "'old', 'new', 'error' (a clear one) or 'lost: why'"
    try: now = read(name, anns, to)
    except (ValueError, OSError) as e:
        return 'error' if str(to) in str(e) else f'lost: {type(e).__name__}: {e}'
    except Exception as e: return f'lost: {type(e).__name__}: {e}'
    if now == old: return 'old'
    return 'new' if now == new else 'lost: neither old nor new'

class Case:
    "One writer, its folder, and both versions of what it writes"
    def __init__(self, name, anns, to):
        self.name,self.anns,self.to,self.kept = name,anns,to,to.with_name(f'{to.name} kept')
        self.states = []
        for k in (0, 1):
            self.write(k)
            self.states.append(read(name, anns, to))
            if not k: shutil.copytree(to, self.kept, symlinks=True)
            elif self.differs: assert self.states[0] != self.states[1], name

    @property
    def differs(self): return self.name != 'proposals'

    def write(self, k):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            WRITERS[self.name](self.anns, self.to, k)

    def reset(self):
        "The old version, as if nothing else had ever been there"
        shutil.rmtree(self.to)
        shutil.copytree(self.kept, self.to, symlinks=True)

    def fork(self, after=lambda: None):
        "A process that writes the new version"
        pid = os.fork()
        if pid: return pid
        code = 1
        try:
            with open(os.devnull, 'w') as null, redirect_stderr(null):
                self.write(1)
                after()
            code = 0
        finally: os._exit(code)

    def verdict(self): return verdict(self.name, self.anns, self.to, *self.states)

    def seconds(self, n=5):
        "How long an undisturbed rewrite takes: the median"
        times = []
        for _ in range(n):
            self.reset()
            end,begin = os.pipe()
            start = time.perf_counter()
            pid = self.fork(after=lambda: os.write(begin, b'x'))   # the end of a process takes long, too
            os.close(begin)
            assert os.read(end, 1), f'{self.name} cannot write'
            times.append(time.perf_counter() - start)
            os.close(end)
            os.waitpid(pid, 0)
        return statistics.median(times)

    def kill_after(self, seconds):
        self.reset()
        pid = self.fork()
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return self.verdict()

    def calls(self):
        "Names of the calls of a rewrite that change files, in their order"
        self.reset()
        with watched() as names: self.write(1)
        return names

    def kill_before_call(self, k):
        "The verdict of a process that ends before its `k`-th call that changes files"
        self.reset()
        with watched(k, lambda: os.kill(os.getpid(), signal.SIGKILL)): pid = self.fork()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, (self.name, k)
        return self.verdict()

WATCHED = 'open', 'fsync', 'replace', 'symlink', 'link', 'unlink'   # open: for writing

@contextmanager
def watched(k=None, act=lambda: None, what=WATCHED):
    """A while in which `act` is called before the `k`-th and all further calls that open a file for writing, flush,
    link, rename or remove it, of those kinds in `what`; a list of the names of such calls"""
    names,real = [],io.open
    def counted(name, f):
        def g(*args, **kwargs):
            mode = str(args[1:2] or kwargs.get('mode', 'r'))
            if name == 'open' and not {*mode} & {*'wax+'}: return f(*args, **kwargs)
            names.append(name)
            if k is not None and len(names) > k: act()
            return f(*args, **kwargs)
        return g
    with ExitStack() as after:
        for o in what:
            for module in (builtins, io) if o == 'open' else (os,):
                after.enter_context(patch.object(module, o, counted(o, real if o == 'open' else getattr(os, o))))
        yield names

def drawn(folder, n):
    "Drawn images with objects, half for training and half for validation"
    anns = [a for a in draw_shapes(folder, 2*n, 64) if a.labels][:n]
    return [replace(a, split=('train', 'valid')[i%2]) for i,a in enumerate(anns)]

def random_kills(case, n, rng):
    "Verdicts of `n` kills, each at a random moment; the seconds that an undisturbed rewrite takes"
    seconds = case.seconds()
    return [case.kill_after(rng.uniform(0, seconds)) for _ in range(n)],seconds

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--n', type=int, default=20, help="kills of each writer")
    ap.add_argument('--images', type=int, default=24)
    ap.add_argument('--folder', type=Path, help="where to write; default: the system's temporary folder")
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('names', nargs='*', help="writers; default: all")
    args = ap.parse_args()
    torch.set_num_threads(1)   # a forked process waits forever for threads that it does not have
    rng,every = random.Random(args.seed),Counter()
    print('| writer | seconds | tried | old whole | new whole | clear error | lost |')
    print('|---|---:|---:|---:|---:|---:|---:|')
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        root = Path(root).resolve()
        anns = drawn(root/'drawn', args.images)
        add_learner(anns, root)
        for name in args.names or WRITERS:
            found,seconds = random_kills(Case(name, anns, root/name), args.n, rng)
            why = Counter(o for o in found if o.startswith('lost'))
            row = Counter(o.partition(':')[0] for o in found)
            every.update(row)
            print(f"| {name} | {seconds:.3f} | {args.n} |", *(f'{row[o]} |' for o in ('old', 'new', 'error', 'lost')),
                  flush=True)
            for o,_ in why.most_common(1): print(f'  {o:.160}', file=sys.stderr, flush=True)
    print(f"| all | | {every.total()} |", *(f'{every[o]} |' for o in ('old', 'new', 'error', 'lost')))
    return int(every['lost'] > 0)

if __name__ == '__main__': sys.exit(main())
