"Train a keypoint model on a csv file, or on drawn figures; evaluate each point, plot predictions, export"
import argparse, re
from pathlib import Path
from vision_tasks.threads import wait_passively
wait_passively()   # before torch is imported
import pandas as pd
from vision_tasks.all import (FIGURE_FLIP_PAIRS, FIGURE_JOINTS, FIGURE_SKELETON, contact_sheet, draw_figures,
                              keypoint_dls, keypoint_learner, read_df, set_seed)

def read(csv, out, size):
    "Annotations of `csv`, or drawn figures; names of their points, pairs that a flip swaps, skeleton"
    if not csv: return draw_figures(out, n=400, size=size), FIGURE_JOINTS, FIGURE_FLIP_PAIRS, FIGURE_SKELETON
    head = list(pd.read_csv(csv, nrows=0))
    cols = [o for o in head if re.search('^[xy]_|_[xy]$', o)]
    names = [re.sub('^x_|_x$', '', o) for o in cols[::2]]
    pairs = [(o, o.replace('left', 'right')) for o in names if 'left' in o] or None   # None: no flips
    return read_df(csv, point_cols=cols, valid_col='is_valid' if 'is_valid' in head else None), names, pairs, None

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('csv', nargs='?', help="columns fname (relative to it), x and y of each point: nose_x, nose_y")
    parser.add_argument('--arch', default='resnet18', help="name in torchvision or timm")
    parser.add_argument('--weights', default='imagenet', help="imagenet, none, or a state dict of the encoder")
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--size', type=int, default=128, help="pixels of the model's input")
    parser.add_argument('--out', type=Path, default=Path('keypoint'), help="folder for all output files")
    args = parser.parse_args()
    set_seed(42)
    pretrained = {'imagenet': True, 'none': False}.get(args.weights, args.weights)
    *data,pairs,lines = read(args.csv, args.out, args.size)
    dls   = keypoint_dls(*data, size=args.size, bs=16, path=args.out, flip_pairs=pairs, skeleton=lines)
    learn = keypoint_learner(dls, args.arch, pretrained=pretrained, loss_func='l1')
    (learn.fine_tune if pretrained else learn.fit_one_cycle)(args.epochs, 5e-3)
    with learn.no_bar():
        print(*(f'{k:>15} {v:.3f}' for k,v in learn.evaluate().items()), sep='\n')
        print(learn.evaluate_per_point().round(3).to_string(index=False))
        targets = dls.valid.items[:12]
        contact_sheet(targets, learn.annotate(targets), args.out/'keypoint.png', skeleton=dls.skeleton)
    learn.export('keypoint.pkl')

if __name__ == '__main__': main()
