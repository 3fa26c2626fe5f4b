"Train a net that finds objects and their pixels, on masks of COCO or on drawn shapes; score, draw, export"
import argparse
from dataclasses import replace
from pathlib import Path
from vision_tasks.all import contact_sheet, draw_shapes, instance_dls, instance_learner, read_coco, set_seed

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', nargs='?', help="COCO json whose objects have masks; without it shapes are drawn")
    parser.add_argument('images', nargs='?', help="folder of its pictures; without it that of the json")
    parser.add_argument('--encoder', default='resnet50', help="torchvision's or timm's name")
    parser.add_argument('--weights', default='imagenet', help="imagenet, none, or a state dict of the encoder")
    parser.add_argument('--pool', default='align', choices=['align', 'pool'], help="RoIAlign or RoIPool")
    parser.add_argument('--width', type=float, default=1., help="of pyramid and heads; less is faster")
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--size', type=int, default=128, help="pixels of the network's input")
    parser.add_argument('--out', type=Path, default=Path('instance'), help="folder for all that is written")
    args = parser.parse_args()
    set_seed(42)
    pretrained = {'imagenet': True, 'none': False}.get(args.weights, args.weights)
    anns  = read_coco(args.data, args.images or Path(args.data).parent) if args.data else \
            draw_shapes(args.out/'shapes', n=400, size=args.size)
    anns  = [replace(a, points=None, visible=None, mask=None) for a in anns]      # which would be drawn
    dls   = instance_dls(anns, size=args.size, bs=8, path=args.out)
    learn = instance_learner(dls, 'mask_rcnn', args.encoder, pretrained,
                             arch_kwargs=dict(pool=args.pool, width=args.width))
    (learn.fine_tune if pretrained else learn.fit_one_cycle)(args.epochs, 5e-3)
    with learn.no_bar():
        print(*(f'{k:>15} {v:.3f}' for k,v in learn.evaluate().items()), sep='\n')
        learn.tune_threshold(per_class=True)
        print(learn.evaluate_per_class().round(3).to_string(index=False), learn.confusion().to_string(), sep='\n')
        truth = dls.valid.items[:12]
        contact_sheet(truth, learn.annotate(truth), args.out/'instance.png', vocab=dls.vocab[1:])
    learn.export('instance.pkl')

if __name__ == '__main__': main()
