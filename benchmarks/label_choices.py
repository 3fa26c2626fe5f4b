"""The defaults of multi-label and classification, one at a time: crops and views, the first bias of the head, rates,
balanced sampling. Images are trained on with each setting in turn, and one training is scored under all views"""
import argparse, itertools, random, sys, tempfile, time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
import numpy as np, pandas as pd
from fastai.vision.all import set_seed
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from machine import WEIGHTS, begin
from multilabel_real import coco128, facemask_csv, facemask_xml, folder, probs_of
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.classification import classification_dls, classification_learner
from vision_tasks.data.annotation import vocab_of
from vision_tasks.data.crops import crop_instances
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import CropView, FitView, JitterView
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.training.build import pooled_head

# --- data: name -> annotations with their splits

TMP = tempfile.TemporaryDirectory()

def face_crops(data):
    "300 + 300 faces of facemask, cropped: one class each, of three, 79 % of them the same; by image, as facemask xml"
    few = []
    for split,seed in (('train', 0), ('valid', 1)):
        anns = [a for a in facemask_xml(data) if a.split == split]
        random.Random(seed).shuffle(anns)
        few += anns[:80]
    crops = crop_instances(few, Path(TMP.name)/'faces', pad=.2, min_size=16)
    return [o for s in ('train', 'valid') for o in [a for a in crops if a.split == s][:300]]

def shapes(data):
    "150 + 150 drawn images, labelled with the shapes in them"
    anns = draw_shapes(Path(TMP.name)/'shapes', 300, seed=0)
    return [replace(a, split='train' if i < 150 else 'valid') for i,a in enumerate(anns)]

@dataclass
class DataSet:
    read:callable
    single:bool   # one class per image
    frozen:int    # epochs with the encoder frozen
    epochs:int    # epochs of the whole net
    bs:int

DATA = {'facemask csv': DataSet(facemask_csv, False, 1, 3, 32), 'facemask xml': DataSet(facemask_xml, False, 1, 3, 32),
        'coco128': DataSet(coco128, False, 2, 6, 16), 'shapes': DataSet(shapes, False, 1, 5, 16),
        'face crops': DataSet(face_crops, True, 1, 4, 32)}

# --- a training

def learner(d, anns, vocab, size, encoder, weights, crop, prior, balance, loss):
    make,build = ((classification_dls, classification_learner) if d.single else (multilabel_dls, multilabel_learner))
    lo,*hi = map(float, crop.split(':'))
    tfms = JointTransform(size, train=JitterView((lo, *hi), 'squish') if hi else CropView((lo, 1.)))
    dls  = make(anns, vocab, bs=d.bs, num_workers=0, item_tfms=tfms, balance=balance)
    learn = build(dls, encoder, pretrained=weights, metrics=[], loss_func=loss)
    if not prior:   # fastai's head, as it was
        learn.model.head = pooled_head(learn.model.encoder.channels[-1], len(vocab))
        learn.create_opt(); learn.freeze()
    return learn

def score(d, p, t, rare):
    "Mean average precision, that of the `rare` classes; of single classes one against the rest"
    ap = np.array([average_precision_score(t[:,i], p[:,i]) if t[:,i].any() else np.nan for i in range(t.shape[1])])
    res = dict(mAP=np.nanmean(ap), rare=np.nanmean(ap[rare]))
    return {**res, 'mean recall': balanced_accuracy_score(t.argmax(1), p.argmax(1))} if d.single else res

def rarest_half(anns, vocab):
    "(c,) bool: the classes in fewest images of the training set, half of those that occur in both sets"
    n = {s: Counter(o for a in anns if a.split == s for o in set(a.labels)) for s in ('train', 'valid')}
    both = sorted((n['train'][o], o) for o in vocab if n['train'][o] and n['valid'][o])
    few  = {o for _,o in both[:len(both)//2]}
    return np.array([o in few for o in vocab])

def run(name, d, anns, args, weights, setting, seed):
    "A row for each view"
    vocab,valid = vocab_of(anns),[a for a in anns if a.split == 'valid']
    targs,rare = np.array([[o in a.labels for o in vocab] for a in valid]),rarest_half(anns, vocab)
    crop,prior,balance,loss,lr,mult,frozen,wd = setting
    set_seed(seed)
    learn = learner(d, anns, vocab, args.size, args.encoder, weights, crop, prior, balance, loss)
    with learn.no_bar(), learn.no_logging():
        c = time.process_time()
        learn.fine_tune(args.epochs or d.epochs, lr, freeze_epochs=d.frozen if frozen is None else frozen, lr_mult=mult,
                        wd=wd)
        secs,first = time.process_time()-c,float(learn.recorder.losses[0])
        for view in args.views:
            side,zoom = (float(o) for o in view.split(':'))
            tfms = JointTransform(round(args.size*side), valid=FitView('squish', zoom=zoom))
            make = classification_dls if d.single else multilabel_dls
            p = probs_of(learn, dl=make(anns, vocab, bs=d.bs, num_workers=0, item_tfms=tfms).valid)
            yield dict(data=name, crop=crop, prior=prior, balance=balance, loss=loss, lr=lr, mult=mult, frozen=frozen,
                       wd=wd, view=view, seed=seed, **score(d, p, targs, rare),
                        **{'first loss': first, 'seconds': secs})

def table(df, keys):
    "Mean ± sd over the seeds, one line a setting; only the settings that vary"
    keys = [k for k in keys if df[k].astype(str).nunique() > 1 or k == 'data']
    cols = [c for c in ('mAP', 'rare', 'mean recall', 'first loss', 'seconds') if c in df]
    print('| ' + ' | '.join([*keys, *cols]) + ' |\n|' + '---|'*len(keys) + '---:|'*len(cols))
    text = df.assign(**{k: df[k].astype(str) for k in keys})
    for key,g in text.groupby(keys, sort=False):
        sd = lambda c: g[c].std(ddof=1) if len(g) > 1 else 0.
        print('|', *(f'{k} |' for k in (key if isinstance(key, tuple) else (key,))),
              *(f'{g[c].mean():.{digits(c)}f} ± {sd(c):.{digits(c)}f} |' for c in cols))

def digits(column): return 0 if column == 'seconds' else 3

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--data', nargs='+', choices=DATA, default=list(DATA))
    ap.add_argument('--seeds', nargs='+', type=int, default=[10, 11], help='other than those of multilabel_real.py')
    ap.add_argument('--size', type=int, default=128, help='pixels of the input')
    ap.add_argument('--encoder', choices=WEIGHTS, default='mobilenet_v2')
    ap.add_argument('--views', nargs='+', default=['1:1'],
                    help='of validation images: size:zoom, both to that of training')
    none = lambda cast: lambda s: None if s == 'None' else cast(s)
    ap.add_argument('--crop', nargs='+', default=['.35'],
                    help='smallest part of the area of a training crop; LO:HI: a JitterView of these scales')
    ap.add_argument('--prior', nargs='+', type=int, default=[1],
                    help="1: the head starts at the frequencies; 0: fastai's")
    ap.add_argument('--balance', nargs='+', type=none(str), default=[None])
    ap.add_argument('--loss', nargs='+', type=none(str), default=[None])
    ap.add_argument('--lr', nargs='+', type=none(float), default=[None])
    ap.add_argument('--mult', nargs='+', type=none(float), default=[None])
    ap.add_argument('--frozen', nargs='+', type=none(int), default=[None],
                    help='epochs; None: those of the data set here')
    ap.add_argument('--wd', nargs='+', type=none(float), default=[None])
    ap.add_argument('--epochs', type=int, help="in place of the data set's own")
    args = begin(ap, ('torch', 'torchvision', 'fastai', 'scikit-learn'))
    data,weights = folder('VISION_TASKS_DATA'),folder('VISION_TASKS_WEIGHTS')/WEIGHTS[args.encoder]
    keys = 'data crop prior balance loss lr mult frozen wd view'.split()
    settings = list(itertools.product(args.crop, args.prior, args.balance, args.loss, args.lr, args.mult, args.frozen,
                                      args.wd))
    rows = []
    for name in args.data:
        d = DATA[name]
        anns = d.read(data)
        for seed,setting in itertools.product(args.seeds, settings):
            for row in run(name, d, anns, args, weights, setting, seed):
                rows.append(row)
                print(*(f'{o:.3f}' if isinstance(o, float) else o for o in row.values()), sep=' | ', flush=True)
    print(f"\n{args.encoder}, {args.size} px, seeds {args.seeds}; mean ± sd\n")
    table(pd.DataFrame(rows), keys)

if __name__ == '__main__': main()
