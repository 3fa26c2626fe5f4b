"Train a classifier on a folder of images per class, or on drawn shapes; calibrate, tune, score, draw, export"
import argparse
from pathlib import Path
from vision_tasks.threads import wait_passively
wait_passively()   # before torch is imported
from vision_tasks.all import (Annotation, classification_dls, classification_learner, contact_sheet, draw_shapes,
                              read_folders, set_seed)

def read(folder, out, size):
    "The annotations of `folder`, or those of drawn shapes, one in each image"
    if folder: return read_folders(folder)
    drawn = draw_shapes(out/'shapes', n=400, size=size, most=1)
    return [Annotation(a.path, a.size, a.labels) for a in drawn if a.labels]

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', nargs='?', help="a folder of images per class, below train/ and valid/ if split")
    parser.add_argument('--arch', default='resnet18', help="torchvision's or timm's name")
    parser.add_argument('--weights', default='imagenet', help="imagenet, none, or a state dict of the encoder")
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--size', type=int, default=224, help="pixels of the network's input")
    parser.add_argument('--out', type=Path, default=Path('classification'), help="folder for all that is written")
    args = parser.parse_args()

    set_seed(42)
    pretrained = {'imagenet': True, 'none': False}.get(args.weights, args.weights)
    dls   = classification_dls(read(args.folder, args.out, args.size), size=args.size, bs=32, path=args.out)
    learn = classification_learner(dls, args.arch, pretrained=pretrained)
    if pretrained: learn.fine_tune(args.epochs, 3e-3)
    else: learn.fit_one_cycle(args.epochs, 5e-3)

    with learn.no_bar():
        learn.calibrate()
        learn.tune_threshold('accuracy_at_coverage', at=.8)   # reject the fifth that is least sure, or less
        print(*(f'{k:>18} {v:.3f}' for k,v in learn.evaluate().items()), sep='\n')
        print(learn.evaluate_per_class().round(3).to_string(index=False))
        truth = dls.valid.items[:12]
        contact_sheet(truth, learn.annotate(truth), args.out/'classification.png', vocab=dls.vocab)
    learn.export('classification.pkl')

if __name__ == '__main__': main()
