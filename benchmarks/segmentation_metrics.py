"""The confusion counts of 500 label maps of 480x360, void included, against torchmetrics and scikit-learn: time, and on
Linux memory; and the cost of five metrics for a batch of logits"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # one thread each, before numpy is there
import sys, warnings
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
warnings.filterwarnings('ignore', 'The image decoding|.torch.jit.script. is deprecated')
import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torchmetrics.classification import MulticlassConfusionMatrix
from machine import describe, interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.metrics.segmentation import (ClassAccuracy, FrequencyIoU, MeanDice, MeanIoU, PixelAccuracy,
                                               confusion_counts)

N,SOME,W,H,C,VOID = 500,25,480,360,11,255   # CamVid's size and classes; SOME different maps, again and again

def maps(n=SOME, dtype=torch.uint8, seed=0):
    "[(prediction, target)]: patches of classes, a fifth of them taken for another, a line of void between some"
    rng = np.random.default_rng(seed)
    grow = lambda o: o.repeat(20, 0).repeat(20, 1)
    res = []
    for _ in range(n):
        t = rng.integers(0, C, (H//20, W//20))
        p = np.where(rng.random(t.shape) < .8, t, rng.integers(0, C, t.shape))
        t,p = grow(t),grow(p)
        t[:, ::20][rng.random(t[:, ::20].shape) < .9] = VOID   # 4.5 % of the pixels
        res.append((torch.from_numpy(p).to(dtype), torch.from_numpy(t).to(dtype)))
    return res

def ours(pairs):
    cm = torch.zeros(C, C, dtype=torch.int64)
    for p,t in pairs: cm += confusion_counts(p, t, C, VOID)
    return cm

def torchmetric(pairs, **kwargs):
    m = MulticlassConfusionMatrix(C, ignore_index=VOID, **kwargs)
    for p,t in pairs: m.update(p, t)
    return m.compute()

def torchmetric_unchecked(pairs): return torchmetric(pairs, validate_args=False)

def sklearn_counts(pairs):
    cm = 0
    for p,t in pairs: cm = cm + confusion_matrix(t[t != VOID], p[t != VOID], labels=range(C))
    return torch.from_numpy(cm)

def kept(pairs):
    "All pairs as they are, counted at the end"
    p,t = (torch.stack(o) for o in zip(*pairs))
    return confusion_counts(p, t, C, VOID)

CONTESTANTS = {'confusion_counts': ours, 'torchmetrics, as it comes': torchmetric,
               'torchmetrics, validate_args=False': torchmetric_unchecked, 'scikit-learn': sklearn_counts,
               'all maps kept, counted at the end': kept}

def growth(name, n, out):
    "Peak of the process's memory beyond what it was after two maps, in MiB, over `n` of them"
    torch.set_num_threads(1)
    def peak(): return next(int(o.split()[1]) for o in Path('/proc/self/status').open() if o.startswith('VmHWM'))/2**10
    pairs = maps(5)
    CONTESTANTS[name](pairs[:2])
    Path('/proc/self/clear_refs').write_text('5')   # the peak begins anew at what is held now
    before = peak()
    CONTESTANTS[name](tuple(o.clone() for o in pairs[i % len(pairs)]) for i in range(n))
    out.put(peak()-before)

def in_new_process(*args):
    ctx = get_context('spawn')
    out = ctx.Queue()
    p = ctx.Process(target=growth, args=(*args, out))
    p.start(); res = out.get(); p.join()
    return res

def label_maps():
    for dtype,rounds in ((torch.uint8, 5), (torch.int64, 3)):
        pairs = maps(dtype=dtype)
        assert all(torch.equal(f(pairs), ours(pairs)) for f in CONTESTANTS.values())
        run = lambda f, k: lambda: f(pairs[i % SOME] for i in range(k))
        few = {o: N//10 if o == 'scikit-learn' else N for o in CONTESTANTS}
        secs = interleaved({o: run(f, few[o]) for o,f in CONTESTANTS.items()}, rounds)
        secs = {o: t*N/few[o] for o,t in secs.items()}
        print(f'\n**{N} pairs of {W}x{H} {dtype}**, {C} classes and void (4.5 %), equal counts; median of {rounds}, '
              "interleaved (scikit-learn: a tenth of them, times ten); growth of memory from two pairs on\n")
        print('| counts | seconds | ms a pair | to ours | growth over 50 pairs, MiB | over 500, MiB |')
        print('|---|---:|---:|---:|---:|---:|')
        for o,s in secs.items():
            mem = [f'{in_new_process(o, n):.1f}' for n in (50, N)] if dtype == torch.uint8 else ['', '']
            print(f"| {o} | {s:.3f} | {s/N*1e3:.2f} | {s/secs['confusion_counts']:.1f} | {' | '.join(mem)} |")

def in_training(b=8):
    torch.manual_seed(0)
    x,y = torch.randn(b, C, H, W),torch.stack([t.long() for _,t in maps(b)])
    def feed(*kinds):
        mets = [k() for k in kinds]
        for m in mets: m.reset()
        def f():
            learn = SimpleNamespace(pred=x.detach(), y=y)   # as new: counts of before are not known
            for m in mets: m.accumulate(learn)
        return f
    theirs = MulticlassConfusionMatrix(C, ignore_index=VOID)
    all_five = MeanIoU,PixelAccuracy,ClassAccuracy,FrequencyIoU,MeanDice
    fns = {'MeanIoU': feed(MeanIoU), 'all five': feed(*all_five), 'argmax(1) alone': lambda: x.argmax(1),
           "torchmetrics' confusion matrix": lambda: theirs.update(x, y)}
    secs = interleaved(fns, 9)
    print(f'\n**A batch of logits ({b}, {C}, {H}, {W})**; median of 9, interleaved\n\n| metrics | ms | to all five |\n'
          '|---|---:|---:|')
    for o,s in secs.items(): print(f"| {o} | {s*1e3:.1f} | {s/secs['all five']:.2f} |")

def main():
    torch.set_num_threads(1)
    print(describe(('numpy', 'torch', 'torchmetrics', 'scikit-learn')))
    label_maps()
    in_training()

if __name__ == '__main__': main()
