"Train instance segmentation on masks of COCO or on drawn shapes; evaluate, plot predictions, export"
import argparse
from dataclasses import replace
from pathlib import Path
from vision_tasks.threads import wait_passively
wait_passively()   # before torch is imported
from vision_tasks.all import contact_sheet, draw_shapes, instance_dls, instance_learner, read_coco, set_seed

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', nargs='?', help="COCO json whose objects have masks; default: drawn shapes")
    parser.add_argument('images', nargs='?', help="folder of its images; default: the folder of the json")
    parser.add_argument('--encoder', default='resnet50', help="name in torchvision or timm")
    parser.add_argument('--weights', default='imagenet', help="imagenet, none, or a state dict of the encoder")
    parser.add_argument('--pool', default='align', choices=['align', 'pool'], help="RoIAlign or RoIPool")
    parser.add_argument('--width', type=float, default=1., help="of pyramid and heads; smaller is faster")
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--size', type=int, default=128, help="pixels of the model's input")
    parser.add_argument('--out', type=Path, default=Path('instance'), help="folder for all output files")
    args = parser.parse_args()
    set_seed(42)
    pretrained = {'imagenet': True, 'none': False}.get(args.weights, args.weights)
    anns  = read_coco(args.data, args.images or Path(args.data).parent) if args.data else \
            draw_shapes(args.out/'shapes', n=400, size=args.size)
    anns  = [replace(a, points=None, visible=None, mask=None) for a in anns]   # not plotted
    dls   = instance_dls(anns, size=args.size, bs=8, path=args.out)
    learn = instance_learner(dls, 'mask_rcnn', args.encoder, pretrained,
                             arch_kwargs=dict(pool=args.pool, width=args.width))
    (learn.fine_tune if pretrained else learn.fit_one_cycle)(args.epochs, 5e-3)
    with learn.no_bar():
        print(*(f'{k:>15} {v:.3f}' for k,v in learn.evaluate().items()), sep='\n')
        learn.tune_threshold(per_class=True)
        print(learn.evaluate_per_class().round(3).to_string(index=False), learn.confusion().to_string(), sep='\n')
        targets = dls.valid.items[:12]
        contact_sheet(targets, learn.annotate(targets), args.out/'instance.png', vocab=dls.vocab[1:])
    learn.export('instance.pkl')

if __name__ == '__main__': main()
