"Train a model for class and box of the largest object of an image, on boxes of a csv file or VOC, or drawn shapes"
import argparse
from pathlib import Path
from vision_tasks.threads import wait_passively
wait_passively()   # before torch is imported
from vision_tasks.all import (contact_sheet, draw_shapes, largest_object, localization_dls, localization_learner,
                              read_df, read_voc, set_seed)

def read(data, out, size):
    "Annotations of `data`, a csv file or a folder in VOC's layout; or drawn shapes"
    if not data: return draw_shapes(out/'shapes', n=400, size=size, most=1)
    if Path(data).is_dir(): return read_voc(data)
    return read_df(data, label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'])

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', nargs='?', help="a folder in VOC's layout; or a csv of fname, label, x1, y1, x2, y2")
    parser.add_argument('--arch', default='resnet18', help="name in torchvision or timm")
    parser.add_argument('--weights', default='imagenet', help="imagenet, none, or a state dict of the encoder")
    parser.add_argument('--loss', default='smooth_l1', help="loss of the box: smooth_l1, l1, l2, giou")
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--size', type=int, default=128, help="pixels of the model's input")
    parser.add_argument('--out', type=Path, default=Path('localization'), help="folder for all output files")
    args = parser.parse_args()
    set_seed(42)
    pretrained = {'imagenet': True, 'none': False}.get(args.weights, args.weights)
    anns  = largest_object(read(args.data, args.out, args.size))
    dls   = localization_dls(anns, size=args.size, bs=32, path=args.out)
    learn = localization_learner(dls, args.arch, pretrained=pretrained, loss_func=args.loss)
    (learn.fine_tune if pretrained else learn.fit_one_cycle)(args.epochs, 4e-3)

    with learn.no_bar():
        print(*(f'{k:>15} {v:.3f}' for k,v in learn.evaluate().items()), sep='\n')
        print(learn.evaluate_per_class().round(3).to_string(index=False))
        targets = dls.valid.items[:12]
        contact_sheet(targets, learn.annotate(targets), args.out/'localization.png', vocab=dls.vocab)
    learn.export('localization.pkl')

if __name__ == '__main__': main()
