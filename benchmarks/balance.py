"""`balance='labels'` with and without: the same net, images, epochs and seeds; the average precision of all classes,
and of those that are rare: in at most `--rare` training images, and in the validation set"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # before numpy is there
import argparse, sys, tempfile, time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
import numpy as np, pandas as pd
from fastai.vision.all import set_seed
from keypoint_real import spread
from machine import WEIGHTS, begin
from multilabel_real import coco128, facemask_xml, folder
from recipes import masks_boxes
from segmentation_real import NoValid
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import vocab_of
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.multilabel import multilabel_dls, multilabel_learner

# --- the sets

@dataclass
class Set:
    read:Callable   # folder of the data sets -> annotations with their splits
    dls:Callable
    learner:Callable
    arch:dict       # arguments of the learner beside the weights of the encoder
    score:Callable  # learner, validation images, vocab -> (c,) scores, nan for a class that is absent
    rare:int        # of at most so many training images
    size:int
    bs:int
    epochs:int
    train:int = None

def multilabel_ap(learn, valid, vocab): return learn.evaluate_per_class().ap.to_numpy()

def ap50(learn, valid, vocab):
    per = coco_ap(valid, learn.annotate(valid, thresh=0.), vocab, per_class=True).set_index('label')
    return np.array([per.ap50[o] for o in vocab])

TMP = tempfile.TemporaryDirectory()

def few_stars(data):
    "Drawn shapes: 8 of 160 training images have stars, of 80 validation images as many as of other shapes"
    anns = draw_shapes(Path(TMP.name), 480, 96, seed=0)
    valid,rest = anns[:80],anns[80:]
    with_star,without = ([a for a in rest if ('star' in a.labels) == o] for o in (True, False))
    return [replace(a, split='valid') for a in valid] + [
        replace(a, split='train') for a in with_star[:8] + without[:152]]

SSDLITE = dict(arch='ssdlite', encoder='mobilenet_v2')

SETS = {
    'coco128':  Set(coco128, multilabel_dls, multilabel_learner, dict(arch='mobilenet_v2'), multilabel_ap, 3, 128, 16,
                    8),
    'facemask labels': Set(facemask_xml, multilabel_dls, multilabel_learner, dict(arch='mobilenet_v2'), multilabel_ap,
                           60, 128, 32, 3, 400),
    'shapes':   Set(few_stars, detection_dls, detection_learner, SSDLITE, ap50, 8, 96, 8, 8),
    'facemask': Set(lambda data: masks_boxes(data, None), detection_dls, detection_learner, SSDLITE, ap50, 80, 160, 8,
                    4, 480)}

def chosen(s, data, limit):
    anns = s.read(data)
    train,valid = ([a for a in anns if a.split == o] for o in ('train', 'valid'))
    return [train[i] for i in np.random.default_rng(0).permutation(len(train))[:limit or s.train]] + valid

def images_with(anns, split): return Counter(o for a in anns if a.split == split for o in set(a.labels))

# --- one run

def run(s, anns, vocab, balance, seed, args, weights):
    "(c,) scores, seconds of training"
    set_seed(seed)
    dls = s.dls(anns, vocab, bs=s.bs, size=s.size, num_workers=0, balance=balance)
    learn = s.learner(dls, **s.arch, pretrained=weights, metrics=[])
    t = time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs or s.epochs, cbs=[NoValid()])
    secs = time.process_time() - t
    with learn.no_bar(): return s.score(learn, [a for a in anns if a.split == 'valid'], vocab),secs

# --- the table

def table(df, groups):
    print(f"| balance | {' | '.join(groups)} | seconds |\n|---|" + '---:|'*(len(groups)+1))
    for name,g in df.groupby('balance', sort=False):
        print(f'| {name} |', *(f'{spread(g[o], 3)} |' for o in groups), f'{g.seconds.mean():.0f} |')
    a,b = (df[df.balance == o].set_index('seed') for o in ('None', 'labels'))
    print('| difference by seed |', *(f'{spread(b[o]-a[o], 3)} |' for o in groups), '|')

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--data', nargs='+', choices=SETS, default=list(SETS))
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    ap.add_argument('--epochs', type=int, help="of `fine_tune`, in place of the set's own; frozen ones come"
                                               " before")
    ap.add_argument('--rare', type=int, help="training images of a rare class at most, in place of the set's own")
    ap.add_argument('--limit', type=int, help="training images, in place of the set's own")
    args = begin(ap)
    data,weights = folder('VISION_TASKS_DATA'),folder('VISION_TASKS_WEIGHTS')/WEIGHTS['mobilenet_v2']
    for name in args.data:
        s = SETS[name]
        anns = chosen(s, data, args.limit)
        vocab,n,m = vocab_of(anns),images_with(anns, 'train'),images_with(anns, 'valid')
        few = args.rare or s.rare
        rare = np.array([0 < n[o] <= few and m[o] > 0 for o in vocab])
        groups = {'all classes': np.array([n[o] > 0 and m[o] > 0 for o in vocab]), 'rare': rare}
        groups['others'] = groups['all classes'] & ~rare
        rows = []
        for seed in args.seeds:
            for balance in (None, 'labels')[::1 if seed%2 == 0 else -1]:     # neither is always the first
                per,secs = run(s, anns, vocab, balance, seed, args, weights)
                rows.append(dict(balance=str(balance), seed=seed, seconds=secs,
                                 **{o: per[on].mean() for o,on in groups.items()}))
                print('#', name, *(f'{o:.4f}' if isinstance(o, float) else o for o in rows[-1].values()), flush=True)
        train = sum(a.split == 'train' for a in anns)
        print(f"\n**{name}**: {train} + {len(anns)-train} images, {s.size} px, bs {s.bs}, "
              f"fine_tune({args.epochs or s.epochs}), seeds {args.seeds}; of {groups['all classes'].sum()} classes "
              f"{rare.sum()} are rare (in at most {few} training images)\n")
        df = pd.DataFrame(rows)
        table(pd.concat([df[df.balance == o] for o in ('None', 'labels')]), list(groups))

if __name__ == '__main__': main()
