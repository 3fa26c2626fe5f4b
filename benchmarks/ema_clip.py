"""Gradient clipping and an average of the weights (`EMA`), with and without, at short budgets: the sets, nets, epochs
and rates of `recipes.py`, three tasks, the same seeds"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # before numpy is there
import argparse, tempfile
from pathlib import Path
import pandas as pd
from keypoint_real import spread
from machine import WEIGHTS, begin
from multilabel_real import folder
from recipes import SETS, TASKS, annotations, run

WHERE = dict(detection=('facemask', 'ssdlite'), segmentation=('camvid', 'light_unet'),
             instance=('pennfudan', 'mask_rcnn'))
# arguments of `fine_tune`
WAYS = {'neither': dict(grad_clip=0., ema=0.), 'clip 1': dict(grad_clip=1., ema=0.),
        'EMA .99': dict(grad_clip=0., ema=.99), 'both': dict(grad_clip=1., ema=.99)}

def one_task(task, args, data, weights):
    name,arch = WHERE[task]
    name = args.data or name
    s = SETS[task, name]
    scores,secs = {o: [] for o in args.ways},{o: [] for o in args.ways}
    with tempfile.TemporaryDirectory() as tmp:
        anns = annotations(task, name, data, Path(tmp))
        for seed in args.seeds:
            for way in args.ways[::1 if seed%2 == 0 else -1]:     # neither is always the first
                args.fine_tune = WAYS[way]
                score,t = run(task, arch, s, anns, None, seed, args, weights)
                scores[way].append(score); secs[way].append(t)
                print('#', task, name, arch, seed, way, f'{score:.4f} {t:.0f} s', flush=True)
    scores = pd.DataFrame(scores)       # a training that diverged is nan, and left out of the mean
    print(f"\n**{task}**: {name}, {arch}, {args.size or s.size} px, bs {s.bs}, fine_tune({args.epochs or s.epochs}), "
          f"seeds {args.seeds}; {TASKS[task][2]}, mean ± sd\n\n"
          "| | score | difference by seed | seconds |\n|---|---:|---:|---:|")
    for way in args.ways:
        gain = scores[way] - scores[args.ways[0]]
        print(f'| {way} | {spread(scores[way], 3)} | {spread(gain, 3)} | {sum(secs[way])/len(secs[way]):.0f} |')
    print(flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--tasks', nargs='+', choices=WHERE, default=list(WHERE))
    ap.add_argument('--data', help="a set of `recipes.py`, in place of the task's own here")
    ap.add_argument('--ways', nargs='+', choices=WAYS, default=list(WAYS))
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    ap.add_argument('--encoder', default='mobilenet_v2', choices=list(WEIGHTS))
    ap.add_argument('--epochs', type=int, help='of `fine_tune`; by default as the set says')
    ap.add_argument('--size', type=int)
    ap.add_argument('--device', default='cpu')
    ap.set_defaults(own_encoder=[], arch_kwargs=None, width=.25)
    args = begin(ap)
    for task in args.tasks:
        one_task(task, args, folder('VISION_TASKS_DATA'), folder('VISION_TASKS_WEIGHTS')/WEIGHTS[args.encoder])

if __name__ == '__main__': main()
