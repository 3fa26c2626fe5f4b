"""Train a detector in several processes, on boxes of a csv file or on drawn shapes; evaluate, plot, export:
torchrun --nproc_per_node 2 train_distributed.py"""
import argparse
from pathlib import Path
from vision_tasks.threads import wait_passively
wait_passively()   # before torch is imported
from vision_tasks.all import (contact_sheet, detection_dls, detection_learner, draw_shapes, rank_distrib, read_df,
                              set_seed)

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', nargs='?', help="csv of fname,label,x1,y1,x2,y2")
    parser.add_argument('--arch', default='ssdlite', choices=['ssdlite', 'faster_rcnn', 'retinanet', 'fcos'])
    parser.add_argument('--encoder', help="name in torchvision or timm; default: the paper's")
    parser.add_argument('--weights', default='imagenet', help="imagenet, none, or a state dict of the encoder")
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--size', type=int, default=128, help="pixels of the model's input")
    parser.add_argument('--out', type=Path, default=Path('distributed'), help="folder for all output files")
    args = parser.parse_args()
    set_seed(42)       # the same split in all processes
    pretrained = {'imagenet': True, 'none': False}.get(args.weights, args.weights)
    if args.data: anns = read_df(args.data, label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'])
    else: anns = draw_shapes(args.out/f'shapes{rank_distrib()}', n=400, size=args.size)   # one folder per process
    dls   = detection_dls(anns, size=args.size, bs=8, path=args.out)      # per process
    learn = detection_learner(dls, args.arch, args.encoder, pretrained)
    with learn.distrib_ctx(), learn.no_bar():       # only rank 0 prints
        (learn.fine_tune if pretrained else learn.fit_one_cycle)(args.epochs, 5e-3)
        print(*(f'{k:>15} {v:.3f}' for k,v in learn.evaluate().items()), sep='\n')
        learn.tune_threshold(per_class=True)
        print(learn.evaluate_per_class().round(3).to_string(index=False), learn.confusion().to_string(), sep='\n')
        if not rank_distrib():
            targets = dls.valid.items[:12]
            contact_sheet(targets, learn.annotate(targets), args.out/'distributed.png', vocab=dls.vocab[1:])
        learn.export('distributed.pkl')

if __name__ == '__main__': main()
