"""Exact thresholds for each class of a data set of the size of PASCAL/COCO, against scikit-learn: time, memory, and the
scores reached"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # one thread each, before numpy is there
import sys, tracemalloc
from pathlib import Path
import numpy as np
from sklearn.metrics import f1_score, precision_recall_curve
from machine import describe, interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.metrics.thresholds import best_threshold

# the loop over the grid is slow: it sees SOME classes, and its time is scaled up
GRID,SOME = np.linspace(.05, .95, 29),8

def scores(n=40504, c=80, seed=0):
    "Float32 scores and targets (n, c): classes from rare to common, as in COCO, of differing difficulty"
    rng = np.random.default_rng(seed)
    t = rng.random((n, c), np.float32) < rng.permutation(np.geomspace(.002, .3, c))
    z = rng.standard_normal((n, c), np.float32)*1.5 - 3 + t*rng.uniform(1, 6, c).astype(np.float32)
    return 1/(1+np.exp(-z)),t

def sklearn_curve(p, t):
    "The best F1 of each class, from its precision-recall curve"
    best = []
    for i in range(p.shape[1]):
        pr,rc,_ = precision_recall_curve(t[:,i], p[:,i])
        best.append((2*pr*rc/np.maximum(pr+rc, 1e-12)).max())
    return np.array(best)

def sklearn_grid(p, t): return np.array([max(f1_score(t[:,i], p[:,i] > x) for x in GRID) for i in range(p.shape[1])])

def peak(f):
    "Most bytes that `f` holds at a time beyond what was there"
    tracemalloc.start()
    f()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size

def main():
    p,t  = scores()
    few  = (slice(None), slice(None, None, p.shape[1]//SOME))
    ours,grid = 'best_threshold, per class',f'f1_score at {len(GRID)} points, per class'
    fns  = {ours: lambda: best_threshold(p, t, per_class=True),
            'precision_recall_curve, per class': lambda: sklearn_curve(p, t),
            grid: lambda: sklearn_grid(p[few], t[few]),
            'best_threshold, micro': lambda: best_threshold(p, t),
            'best_threshold, macro': lambda: best_threshold(p, t, average='macro')}
    secs = interleaved(fns)
    secs[grid] *= p.shape[1]/SOME
    print(describe(), f"\n\n{p.shape[0]} x {p.shape[1]} float32 scores, {p.nbytes/2**20:.1f} MiB; median of five, "
          f"interleaved; the grid ran over {SOME} classes, its time is scaled by {p.shape[1]//SOME}\n")
    print('| F1 | seconds | to ours | peak extra memory, MiB | of the scores |\n|---|---:|---:|---:|---:|')
    for o,f in fns.items():
        m = peak(f)
        print(f'| {o} | {secs[o]:.3f} | {secs[o]/secs[ours]:.1f} | {m/2**20:.1f} | {m/p.nbytes:.2f} |')
    best,curve = best_threshold(p, t, per_class=True)[1],sklearn_curve(p, t)
    on_grid = sklearn_grid(p[few], t[few])
    gain = best[few[1]] - on_grid
    assert np.abs(best-curve).max() < 1e-6, "not the optimum of the curve"
    assert gain.min() > -1e-6, "below the grid"
    print(f"\nF1 of the {p.shape[1]} classes: at most {np.abs(best-curve).max():.1e} from the optimum of sklearn's "
          f"curve (float32 rounding); over the grid (its {SOME} classes) by {gain.min():.4f} to {gain.max():.4f}, "
          f"{gain.mean():.4f} in the mean")

if __name__ == '__main__': main()
