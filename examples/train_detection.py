"Train a detector on boxes of VOC, COCO, YOLO or a csv file, or on drawn shapes; evaluate, plot, export"
import argparse
from pathlib import Path
from vision_tasks.threads import wait_passively
wait_passively()   # before torch is imported
from vision_tasks.all import (contact_sheet, detection_dls, detection_learner, draw_shapes, read_coco, read_df,
                              read_voc, read_yolo, set_seed)

def read(data, images):
    "Annotations of `data`, whose suffix gives the format"
    kind = Path(data).suffix
    if kind == '.json': return read_coco(data, images or Path(data).parent)
    if kind == '.csv':  return read_df(data, label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'])
    return read_yolo(data) if kind in ('.yaml', '.yml') else read_voc(data)

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', nargs='?', help="VOC folder, COCO json, YOLO yaml, or csv of fname,label,x1,y1,x2,y2")
    parser.add_argument('images', nargs='?', help="folder of the images of a COCO json; default: its folder")
    parser.add_argument('--arch', default='ssdlite', choices=['ssdlite', 'faster_rcnn', 'retinanet', 'fcos'])
    parser.add_argument('--encoder', help="name in torchvision or timm; default: the paper's")
    parser.add_argument('--weights', default='imagenet', help="imagenet, none, or a state dict of the encoder")
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--size', type=int, default=128, help="pixels of the model's input")
    parser.add_argument('--out', type=Path, default=Path('detection'), help="folder for all output files")
    args = parser.parse_args()
    set_seed(42)
    pretrained = {'imagenet': True, 'none': False}.get(args.weights, args.weights)
    anns  = read(args.data, args.images) if args.data else draw_shapes(args.out/'shapes', n=400, size=args.size)
    dls   = detection_dls(anns, size=args.size, bs=16, path=args.out)
    learn = detection_learner(dls, args.arch, args.encoder, pretrained)
    (learn.fine_tune if pretrained else learn.fit_one_cycle)(args.epochs, 5e-3)
    with learn.no_bar():
        print(*(f'{k:>15} {v:.3f}' for k,v in learn.evaluate().items()), sep='\n')
        learn.tune_threshold(per_class=True)
        print(learn.evaluate_per_class().round(3).to_string(index=False), learn.confusion().to_string(), sep='\n')
        targets = dls.valid.items[:12]
        contact_sheet(targets, learn.annotate(targets), args.out/'detection.png', vocab=dls.vocab[1:])
    learn.export('detection.pkl')

if __name__ == '__main__': main()
