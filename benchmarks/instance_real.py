"""Instance segmentation of pedestrians and of COCO's objects: `instance_learner` beside a plain loop with the recipe of
torchvision's tutorial (flip, a warm-up; Adam, or its SGD), the same net, encoder weights, images, epochs, batch size;
COCO's AP of boxes and of masks in pixels of the files by one scorer for both"""
import argparse, json, random, sys, tempfile
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from torchvision import tv_tensors as tv
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.transforms import v2
from detection_real import Images, fit_and_predict, loader, named, predictions, run, table, train
from machine import WEIGHTS, begin
from multilabel_real import folder
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import vocab_of
from vision_tasks.data.targets import clip_objects
from vision_tasks.data.formats.instance_masks import read_instance_masks
from vision_tasks.data.formats.mask_values import read_codes
from vision_tasks.data.formats.yolo import read_yolo
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.instance import instance_dls, instance_learner
from vision_tasks.models.registry import get_arch
from vision_tasks.ops.masks import decode_mask, encode_rle

# --- data: name -> annotations with their splits

def pennfudan(data):
    "50 of the 170 images are held out, as many as in torchvision's tutorial, drawn from the sorted names"
    anns = read_instance_masks(data/'pennfudan/images', data/'pennfudan/masks', 'person',
                               mask_of=lambda p: f'{p.stem}_mask.png')
    held = set(random.Random(1234).sample(range(len(anns)), 50))
    return [replace(a, split='valid' if i in held else 'train') for i,a in enumerate(anns)]

def coco128(data):
    "The 98 + 100 images that have polygons; the ids of those are COCO's own, up to 90, and not data.yaml's"
    path  = (data/'coco128').resolve()
    names = ''.join(f"  {k}: {v}\n" for k,v in read_codes(path/'masks.yaml').items())
    with tempfile.TemporaryDirectory() as tmp:
        seg = Path(tmp)/'seg.yaml'
        seg.write_text(f"path: {path}\ntrain: images/train2017\nval: images/val2017\nnames:\n{names}")
        anns = read_yolo(seg, labels='labels_seg')
    # where the file of polygons is missing, the image is read as one without objects, though it has boxes
    return [a for a in anns if a.labels]

DATA = dict(pennfudan=pennfudan, coco128=coco128)

def only(a, names):
    "`a` with the objects of these names; the others are background then"
    k = np.isin(a.labels, names)
    return replace(a, labels=[o for o,i in zip(a.labels, k) if i], bboxes=a.bboxes[k],
                   masks=[o for o,i in zip(a.masks, k) if i])

def arguments(args, weights):
    "Encoder and weights of the net, and further arguments of its builder: the same for both"
    if args.arch != 'mask_rcnn': return dict(pretrained=True),{}
    return named(args, weights, ['mask_rcnn']),dict(width=args.width)

def detector(args, weights, vocab):
    "The net of the stock loop; it resizes the longer side to `size` pixels, as what ours is given"
    weights,kw = arguments(args, weights)
    return get_arch(args.arch, 'instance')(len(vocab), resize=True, min_size=args.size, max_size=args.size,
                                           size=args.size, **weights, **kw)

# --- the two systems: train on `anns`, predict their validation images; -> annotations, seconds of training

def ours(anns, vocab, args, weights):
    weights,kw = arguments(args, weights)
    dls = instance_dls(anns, vocab, bs=args.bs, size=args.size, num_workers=args.workers, device=args.device)
    learn = instance_learner(dls, args.arch, metrics=[], arch_kwargs=kw, **weights)
    learn.recipe = learn.recipe.replace(**args.recipe)
    return fit_and_predict(learn, anns, args)

class MaskedImages(Images):
    "The data set of torchvision's tutorial: an image, boxes, labels and masks, flipped at random"
    tfms = v2.Compose([v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])
    def target(self, a):
        w,h = a.size
        masks = np.stack([decode_mask(m, a.size) for m in a.masks]) if a.masks else np.zeros((0, h, w), bool)
        return dict(super().target(a), masks=tv.Mask(torch.from_numpy(masks).to(torch.uint8)))

def schedule(opt, args, steps):
    "The tutorial's warm-up over the first epoch, then a cosine, or its tenth of the rate after every third epoch"
    warm = torch.optim.lr_scheduler.LinearLR(opt, 1e-3, total_iters=max(steps-1, 1))
    if args.schedule == 'step': then = torch.optim.lr_scheduler.StepLR(opt, 3*steps, .1)
    else: then = torch.optim.lr_scheduler.CosineAnnealingLR(opt, args.epochs*steps)
    return torch.optim.lr_scheduler.ChainedScheduler([warm, then])

def stock(anns, vocab, args, weights):
    net = detector(args, weights, vocab).net.to(args.device)
    dl  = loader(MaskedImages([a for a in anns if a.split == 'train'], vocab), args)
    if args.stock_opt == 'adam': opt = torch.optim.Adam(net.parameters(), args.stock_lr)
    else: opt = torch.optim.SGD(net.parameters(), args.stock_lr, momentum=.9, weight_decay=5e-4)
    secs = train(net, dl, opt, schedule(opt, args, len(dl)), args)
    return predictions(net, anns, vocab, args.device, pasted),secs

def pasted(o, size):
    masks = paste_masks_in_image(o['masks'], o['boxes'], size[::-1])[:,0] > .5   # ours leaves that to others
    return [encode_rle(m.numpy()) for m in masks]

def score(valid, preds, vocab):
    boxes,masks = (coco_ap(valid, preds, vocab, iou_type=o) for o in ('bbox', 'segm'))
    return {f'{what} {name}': d[k] for what,d in (('box', boxes), ('mask', masks))
            for name,k in dict(AP='map', AP50='map50', AP75='map75').items()}

SYSTEMS = dict(ours=('ours', ours), stock=("torchvision's recipe", stock))

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--data', nargs='+', choices=DATA, default=list(DATA))
    ap.add_argument('--systems', nargs='+', choices=SYSTEMS, default=list(SYSTEMS))
    ap.add_argument('--arch', default='mask_rcnn',
                    help="or torchvision's: maskrcnn_resnet50_fpn starts, as in the tutorial, from COCO's weights")
    ap.add_argument('--encoder', default='mobilenet_v2', help='of mask_rcnn')
    ap.add_argument('--width', type=float, default=.25, help='of mask_rcnn: 1 is for a GPU')
    ap.add_argument('--classes', nargs='+', help='only these; everything else, and images without them, is background')
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    ap.add_argument('--size', type=int, default=192, help='pixels of the longer side')
    ap.add_argument('--bs', type=int, default=4)
    ap.add_argument('--epochs', type=int, default=8, help='of either')
    ap.add_argument('--freeze', type=int, help="so many of ours with a frozen encoder, in place of the recipe's")
    ap.add_argument('--lr', type=float, help="of ours, in place of the recipe's")
    ap.add_argument('--recipe', type=json.loads, default={}, help="JSON: other values of ours' recipe")
    ap.add_argument('--stock-lr', type=float, default=1e-3, help='of the stock loop')
    ap.add_argument('--stock-opt', choices=['sgd', 'adam'], default='adam',
                    help="the tutorial's is SGD of .005, which begins from COCO's weights")
    ap.add_argument('--schedule', choices=['cosine', 'step'], default='cosine', help='of the stock loop')
    ap.add_argument('--limit', type=int, help='number of training images')
    ap.add_argument('--workers', type=int, default=0)
    ap.add_argument('--device', default='cpu')
    args = begin(ap)
    data,weights = folder('VISION_TASKS_DATA'),folder('VISION_TASKS_WEIGHTS')/WEIGHTS['mobilenet_v2']
    for name in args.data:
        anns = [clip_objects(a) for a in DATA[name](data)]
        if args.classes: anns = [only(a, args.classes) for a in anns]
        train,valid = ([a for a in anns if a.split == o] for o in ('train', 'valid'))
        train = train[:args.limit]
        systems = dict(SYSTEMS[o] for o in args.systems)
        df = run(systems, score, train + valid, vocab_of(anns), args, weights)
        n_objects = [sum(len(a.labels) for a in o) for o in (train, valid)]
        print(f"\n**{name}**: {len(train)} + {len(valid)} images, {n_objects[0]} + {n_objects[1]} objects, "
              f"{len(vocab_of(anns))} classes; {args.arch}, {args.size} px, bs {args.bs}, {args.epochs} epochs, seeds "
              f"{args.seeds}; mean ± sd\n")
        table(df)
        print(flush=True)

if __name__ == '__main__': main()
