"Train semantic segmentation on images and masks, or on drawn shapes; evaluate, plot predictions, export"
import argparse
from pathlib import Path
from vision_tasks.threads import wait_passively
wait_passively()   # before torch is imported
from vision_tasks.all import (SHAPE_CODES, contact_sheet, draw_shapes, read_codes, read_masks, segmentation_dls,
                              segmentation_learner, set_seed)

def read(images, masks, codes):
    "Annotations of two folders, and the names of the classes: from a yaml file, or separated by commas"
    codes = read_codes(codes) if Path(codes).suffix in ('.yaml', '.yml') else codes.split(',')
    return read_masks(images, masks, codes), codes

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', nargs='*', help="folder of images, folder of masks with the same stems, and codes: "
                        "background,cat,dog or a yaml file")
    parser.add_argument('--arch', default='light_unet', help="a name of list_archs('segmentation')")
    parser.add_argument('--encoder', help="name in torchvision or timm, for light_unet, dynamic_unet and lraspp")
    parser.add_argument('--weights', default='imagenet', help="imagenet, none, or a state dict of the encoder")
    parser.add_argument('--loss', default='ce', help="ce, focal, dice, ce_dice")
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--size', type=int, default=128, help="pixels of the model's input")
    parser.add_argument('--out', type=Path, default=Path('segmentation'), help="folder for all output files")
    args = parser.parse_args()
    if len(args.data) not in (0, 3): parser.error(f"expected images, masks and codes, or nothing; got {args.data}")
    set_seed(42)
    if not args.data: draw_shapes(args.out/'shapes', n=400, size=args.size)
    pretrained = {'imagenet': True, 'none': False}.get(args.weights, args.weights)
    drawn = [args.out/'shapes'/'images', args.out/'shapes'/'masks', ','.join(SHAPE_CODES)]
    dls   = segmentation_dls(*read(*args.data or drawn), size=args.size, bs=16, path=args.out)
    learn = segmentation_learner(dls, args.arch, args.encoder, pretrained, loss_func=args.loss)
    (learn.fine_tune if pretrained else learn.fit_one_cycle)(args.epochs, 2e-3)
    with learn.no_bar():
        print(*(f'{k:>15} {v:.3f}' for k,v in learn.evaluate().items()), sep='\n')
        print(learn.evaluate_per_class().round(3).to_string(index=False))
        targets = dls.valid.items[:12]
        contact_sheet(targets, learn.annotate(targets), args.out/'segmentation.png', vocab=dls.vocab, alpha=.8)
    learn.export('segmentation.pkl')

if __name__ == '__main__': main()
