"`multilabel_learner` beside fastai's `vision_learner` on real images: same weights, head, epochs, seeds, scorer"
import argparse, os, random, sys, time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.vision.all import (DataBlock, ImageBlock, MultiCategoryBlock, Normalize, RandomResizedCrop, Resize,
                               aug_transforms, imagenet_stats, set_seed, vision_learner)
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torchvision.models import mobilenet_v2
from machine import WEIGHTS, begin
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import vocab_of
from vision_tasks.data.targets import label_set, path_of
from vision_tasks.data.splits import AnnotationSplitter, stratified_folds
from vision_tasks.data.formats.table import read_df
from vision_tasks.data.formats.voc import read_voc
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.metrics.threshold_curves import out_of_fold_threshold

SCORES = ('mAP', 'F1 at .5', 'F1 global, out of fold', 'F1 per class, out of fold', 'F1 best of 29, in sample')
TIMES  = ('seconds', 'process seconds')

def folder(name):
    "The folder that the environment variable `name` gives"
    if not os.environ.get(name):
        what = 'encoder weights' if 'WEIGHTS' in name else 'data sets'
        sys.exit(f"{name} is not set: it is the folder of {what} that this benchmark reads")
    return Path(os.environ[name])

# --- data: name -> annotations with their splits, and the budget

COLS = dict(label_col='labels', label_delim=' ', valid_col='is_valid')
def facemask_csv(data): return read_df(data/'facemask/multilabel.csv', data/'facemask/images', **COLS)
def coco128(data):      return read_df(data/'coco128/multilabel.csv', data/'coco128', **COLS)

def facemask_xml(data):
    "The split of the face-mask experiment: 170 of 853, over the sorted names"
    anns = sorted(read_voc(data/'facemask', images='images', annotations='annotations'), key=lambda a: a.path.name)
    held = set(random.Random(1234).sample(range(len(anns)), 170))
    return [replace(a, split='valid' if i in held else 'train') for i,a in enumerate(anns)]

@dataclass
class DataSet:
    read:callable
    frozen:int   # epochs with the encoder frozen
    epochs:int   # epochs of the whole net
    bs:int

DATA = {'facemask csv': DataSet(facemask_csv, 2, 3, 32), 'facemask xml': DataSet(facemask_xml, 2, 3, 32),
        'coco128': DataSet(coco128, 4, 6, 16)}

# --- the two systems: annotations -> learner

def ours(anns, vocab, size, bs, weights):
    dls = multilabel_dls(anns, vocab, bs=bs, size=size, num_workers=0)
    return multilabel_learner(dls, 'mobilenet_v2', pretrained=weights, metrics=[])

def stock_dls(anns, vocab, bs, item_tfms):
    flip_and_light = aug_transforms(max_rotate=0., max_zoom=1., max_warp=0.)
    block = DataBlock((ImageBlock, MultiCategoryBlock(vocab=vocab)), get_x=path_of, get_y=label_set,
                      splitter=AnnotationSplitter(), item_tfms=item_tfms,
                      batch_tfms=[*flip_and_light, Normalize.from_stats(*imagenet_stats)])
    return block.dataloaders(anns, bs=bs, num_workers=0)

def stock_net(weights, pretrained):
    "mobilenet_v2 as `vision_learner` can cut it: before a pooling, which torchvision's has inside `forward`"
    net = mobilenet_v2().features
    net.load_state_dict({k.removeprefix('features.'): v for k,v in torch.load(weights, weights_only=True).items()})
    return nn.Sequential(net, nn.AdaptiveAvgPool2d(1))

def stock(anns, vocab, size, bs, weights):
    dls = stock_dls(anns, vocab, bs, RandomResizedCrop(size, min_scale=.35))
    assert list(dls.vocab) == vocab
    return vision_learner(dls, partial(stock_net, weights), metrics=[])

# --- one scorer for both

def score(p, t, folds):
    "The `SCORES` of probabilities (n, c) and targets (n, c) bool, over the classes that have positives"
    p,t = p[:, t.any(0)],t[:, t.any(0)]
    f1  = lambda cut: f1_score(t, p > cut, average='macro', zero_division=0)
    row = {o: i for i,o in enumerate(dict.fromkeys(folds.tolist()))}
    own = [row[o] for o in folds.tolist()]
    one,_  = out_of_fold_threshold(p, t, folds, average='macro')
    each,_ = out_of_fold_threshold(p, t, folds, per_class=True)
    best = max(map(f1, np.linspace(.05, .95, 29)))
    return dict(zip(SCORES, (average_precision_score(t, p), f1(.5), f1(one[own][:,None]), f1(each[own]), best)))

def probs_of(learn, **kw): return learn.get_preds(**kw)[0].as_subclass(torch.Tensor).numpy()

def run(name, d, anns, args, weights):
    "One row a seed and system"
    vocab,valid = vocab_of(anns),[a for a in anns if a.split == 'valid']
    targs = np.array([[o in a.labels for o in vocab] for a in valid])
    folds = stratified_folds(valid, 5)
    rows  = []
    def note(system, seed, probs, secs):
        rows.append(dict(system=system, seed=seed, **score(probs, targs, folds), **dict(zip(TIMES, secs))))
        print(name, *(f'{o:.3f}' if isinstance(o, float) else o for o in rows[-1].values()), sep=' | ', flush=True)
    for seed in args.seeds:
        systems = {'ours': ours, 'fastai': stock}
        for system in list(systems)[::1 if seed%2 == 0 else -1]:     # neither is always the first
            set_seed(seed)
            learn = systems[system](anns, vocab, args.size, d.bs, weights)
            with learn.no_bar(), learn.no_logging():
                t,c = time.perf_counter(),time.process_time()
                learn.fine_tune(args.epochs or d.epochs, freeze_epochs=args.frozen or d.frozen)
                secs = time.perf_counter()-t,time.process_time()-c
                note(system, seed, probs_of(learn), secs)
                # fastai's crop takes the centre of an image; ours, and this, all of it
                if system == 'fastai':
                    squished = stock_dls(anns, vocab, d.bs, Resize(args.size, 'squish')).valid
                    note('fastai, valid squished', seed, probs_of(learn, dl=squished), secs)
    return pd.DataFrame(rows)

def table(df):
    "Mean ± standard deviation over the seeds, one line a system, and ours less fastai's"
    by = {o: df[df.system == o] for o in ('ours', 'fastai', 'fastai, valid squished')}
    sd = lambda x: x.std(ddof=1) if len(x) > 1 else 0.
    print('| system | ' + ' | '.join([*SCORES, *TIMES]) + ' |\n|---|' + '---:|'*len([*SCORES, *TIMES]))
    for o,d in by.items():
        spread = lambda c, k: f'{d[c].mean():.{k}f} ± {sd(d[c]):.{k}f} |'
        print(f'| {o} |', *(spread(c, 3) for c in SCORES), *(spread(c, 0) for c in TIMES))
    for o in list(by)[1:]:
        gain,ratio = (lambda c: by['ours'][c].mean()-by[o][c].mean()),(lambda c: by['ours'][c].mean()/by[o][c].mean())
        print(f'| ours - {o} |', *(f'{gain(c):+.3f} |' for c in SCORES), *(f'x {ratio(c):.2f} |' for c in TIMES))

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--data', nargs='+', choices=DATA, default=list(DATA))
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    ap.add_argument('--size', type=int, default=160, help='pixels of the input')
    ap.add_argument('--frozen', type=int, help="epochs with the encoder frozen, in place of the data set's own")
    ap.add_argument('--epochs', type=int, help="epochs after these, in place of the data set's own")
    ap.add_argument('--limit', type=int, help='number of images of each side of the split, for a trial')
    args = begin(ap, ('torch', 'torchvision', 'fastai', 'scikit-learn'))
    data,weights = folder('VISION_TASKS_DATA'),folder('VISION_TASKS_WEIGHTS')/WEIGHTS['mobilenet_v2']
    for name in args.data:
        d = DATA[name]
        anns = d.read(data)
        if args.limit: anns = [a for s in ('train', 'valid') for a in [o for o in anns if o.split == s][:args.limit]]
        df = run(name, d, anns, args, weights)
        n = {s: sum(a.split == s for a in anns) for s in ('train', 'valid')}
        print(f"\n**{name}**: {n['train']} + {n['valid']} images, {len(vocab_of(anns))} classes; mobilenet_v2, "
              f"{args.size} px, bs {d.bs}, {args.frozen or d.frozen} frozen + {args.epochs or d.epochs} epochs, "
              f"seeds {args.seeds}; mean ± sd\n")
        table(df)
        print(flush=True)

if __name__ == '__main__': main()
