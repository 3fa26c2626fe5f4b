"""Every task on drawn shapes, from files to a tuned model: `python -m vision_tasks.demo`, a few minutes on a CPU, no
network"""
from __future__ import annotations
import argparse, time
from pathlib import Path
import pandas as pd
import torch
from fastai.torch_core import set_seed
from .data.blocks import stratified_folds
from .data.synthetic import draw_shapes
from .multilabel import multilabel_dls, multilabel_learner
from .show import contact_sheet
from .thresholds import out_of_fold_threshold

def demo_multilabel(path:Path, n:int, epochs:int) -> dict:
    "Which shapes are in the picture? A row of the table; a contact sheet and the exported learner go to `path`"
    anns  = draw_shapes(path/'shapes', n=n, size=64)
    dls   = multilabel_dls(anns, size=64, bs=32, path=path, num_workers=0)
    learn = multilabel_learner(dls, 'resnet18', pretrained=False)
    with learn.no_bar():
        learn.logger = print_epoch
        print_epoch(['epoch', 'train loss', 'valid loss', *(m.name for m in learn.metrics), 'time'])
        learn.fit_one_cycle(epochs, 4e-3)
        before = learn.evaluate()
        # what the tuned thresholds are worth on pictures that they were not chosen on
        valid = learn.dls.valid.items
        tuned = out_of_fold_threshold(*learn.get_preds(), stratified_folds(valid), per_class=True)[1]
        learn.tune_threshold(per_class=True)
        truth = valid[:12]
        preds = learn.annotate(truth)
    contact_sheet(truth, preds, path/'multilabel.png', title="multilabel: truth and prediction")
    learn.logger = print     # a logger of ours would have to be importable where the model is loaded
    learn.export('multilabel.pkl')
    return {'mAP': before['map_macro'], 'macro F1 at .5': before['f1_macro'],
            'tuned per class, out of fold': tuned.nanmean().item()}

def print_epoch(row):
    "A line an epoch, in place of fastai's table, which wants a terminal or a notebook"
    def cell(o): return f'{o:>14}' if isinstance(o, str) else f'{o:>14.3f}' if isinstance(o, float) else f'{o:>5}'
    print(' '.join(map(cell, row)), flush=True)

DEMOS = dict(multilabel=demo_multilabel)

def main(args=None):
    "Run the demos that the command line names, all by default"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('demo'), help="folder for pictures and models")
    parser.add_argument('--n', type=int, default=400, help="drawn pictures")
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('tasks', nargs='*', default=list(DEMOS), help=f"of {list(DEMOS)}")
    args = parser.parse_args(args)
    unknown = set(args.tasks) - set(DEMOS)
    if unknown: parser.error(f"no demo is called {sorted(unknown)}; there are {list(DEMOS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.tasks:
        set_seed(42)
        where = 'the GPU' if torch.cuda.is_available() else 'the CPU'
        print(f"{name}: {args.n} drawn pictures, {args.epochs} epochs on {where}", flush=True)
        start = time.time()
        scores = DEMOS[name](args.out, args.n, args.epochs)
        rows.append({'task': name, **{k: f'{v:.3f}' for k,v in scores.items()}, 'seconds': f'{time.time()-start:.0f}'})
    print('\n' + pd.DataFrame(rows).to_string(index=False))
    sheets,models = (', '.join(str(args.out/f'{name}.{end}') for name in args.tasks) for end in ('png', 'pkl'))
    print(f"\nTruth beside prediction: {sheets}. Exported: {models}")

if __name__ == '__main__': main()
