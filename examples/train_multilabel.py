"Train a multi-label model on a csv file, or on drawn shapes; tune thresholds, evaluate, plot predictions, export"
import argparse
from pathlib import Path
from vision_tasks.threads import wait_passively
wait_passively()   # before torch is imported
from vision_tasks.all import (Annotation, contact_sheet, draw_shapes, multilabel_dls, multilabel_learner, read_df,
                              set_seed)
from vision_tasks.data.targets import label_set

def read(csv, out, size):
    "The annotations of `csv`, or the labels of drawn shapes"
    if csv: return read_df(csv, label_col='labels', label_delim=' ', valid_col='is_valid')
    return [Annotation(a.path, a.size, label_set(a)) for a in draw_shapes(out/'shapes', n=400, size=size)]

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('csv', nargs='?', help="columns fname (relative to it), labels (separated by blanks), is_valid")
    parser.add_argument('--arch', default='resnet18', help="name in torchvision or timm")
    parser.add_argument('--weights', default='imagenet', help="imagenet, none, or a state dict of the encoder")
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--size', type=int, default=224, help="pixels of the model's input")
    parser.add_argument('--out', type=Path, default=Path('multilabel'), help="folder for all output files")
    args = parser.parse_args()

    set_seed(42)
    pretrained = {'imagenet': True, 'none': False}.get(args.weights, args.weights)
    dls   = multilabel_dls(read(args.csv, args.out, args.size), size=args.size, bs=32, path=args.out)
    learn = multilabel_learner(dls, args.arch, pretrained=pretrained)
    if pretrained: learn.fine_tune(args.epochs, 3e-3)
    else: learn.fit_one_cycle(args.epochs, 5e-3)

    with learn.no_bar():
        learn.tune_threshold(per_class=True)
        print(*(f'{k:>15} {v:.3f}' for k,v in learn.evaluate().items()), sep='\n')
        print(learn.evaluate_per_class().round(3).to_string(index=False))
        targets = dls.valid.items[:12]
        contact_sheet(targets, learn.annotate(targets), args.out/'multilabel.png', vocab=dls.vocab)
    learn.export('multilabel.pkl')

if __name__ == '__main__': main()
