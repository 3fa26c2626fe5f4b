"""Instance segmentation of pedestrians and of COCO's objects: `instance_learner` beside a plain loop with the recipe of
torchvision's tutorial (flip, a warm-up; Adam, or its SGD), the same net, encoder weights, pictures, epochs, batch size;
COCO's AP of boxes and of masks in pixels of the files by one scorer for both"""
import argparse, random, sys, tempfile, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.vision.all import set_seed
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors as tv
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from detection_real import pairs
from keypoint_real import spread
from machine import describe
from multilabel_real import WEIGHTS, folder
from segmentation_real import NoValid, clock
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.blocks import clip_objects
from vision_tasks.data.image import read_image
from vision_tasks.data.masks import read_codes, read_instance_masks
from vision_tasks.data.yolo import read_yolo
from vision_tasks.detection_metrics import coco_ap
from vision_tasks.instance import instance_dls, instance_learner
from vision_tasks.models.registry import get_arch
from vision_tasks.ops.masks import decode_mask, encode_rle

# --- data: name -> annotations with their splits

def pennfudan(data):
    "50 of the 170 pictures are held out, as many as in torchvision's tutorial, drawn from the sorted names"
    anns = read_instance_masks(data/'pennfudan/images', data/'pennfudan/masks', 'person',
                               mask_of=lambda p: f'{p.stem}_mask.png')
    held = set(random.Random(1234).sample(range(len(anns)), 50))
    return [replace(a, split='valid' if i in held else 'train') for i,a in enumerate(anns)]

def coco128(data):
    "The 98 + 100 pictures that have polygons; the ids of those are COCO's own, up to 90, and not data.yaml's"
    path  = (data/'coco128').resolve()
    names = ''.join(f"  {k}: {v}\n" for k,v in read_codes(path/'masks.yaml').items())
    with tempfile.TemporaryDirectory() as tmp:
        seg = Path(tmp)/'seg.yaml'
        seg.write_text(f"path: {path}\ntrain: images/train2017\nval: images/val2017\nnames:\n{names}")
        anns = read_yolo(seg, labels='labels_seg')
    # where the file of polygons is missing, the picture is read as one without objects; by its boxes it has some
    return [a for a in anns if a.labels]

DATA = dict(pennfudan=pennfudan, coco128=coco128)

def only(a, names):
    "`a` with the objects of these names; the others are background then"
    k = np.isin(a.labels, names)
    return replace(a, labels=[o for o,i in zip(a.labels, k) if i], bboxes=a.bboxes[k],
                   masks=[o for o,i in zip(a.masks, k) if i])

def detector(args, weights, vocab):
    "The same net for both; where it resizes, the longer side becomes `size` pixels, as in what ours is given"
    on_any = args.arch == 'mask_rcnn'
    kw = dict(encoder=args.encoder, width=args.width, size=args.size) if on_any else {}
    return get_arch(args.arch, 'instance')(len(vocab), pretrained=weights if on_any else True, resize=True,
                                           min_size=args.size, max_size=args.size, **kw)

# --- the two systems: train on `anns`, then answer for their valid ones; -> annotations, seconds of training

def ours(anns, vocab, args, weights):
    net = detector(args, weights, vocab)
    net.net.transform.resizes = False
    dls = instance_dls(anns, vocab, bs=args.bs, size=args.size, num_workers=args.workers, device=args.device)
    learn = instance_learner(dls, net, metrics=[])
    t = clock(args.device)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(NoValid()):
        if args.freeze: learn.fine_tune(args.epochs-args.freeze, args.lr, freeze_epochs=args.freeze)
        else:
            learn.unfreeze()
            learn.fit_one_cycle(args.epochs, slice(args.lr/learn.lr_mult, args.lr))
    secs = clock(args.device)-t
    with learn.no_bar(): return learn.annotate([a for a in anns if a.split == 'valid'], thresh=0.),secs

class Pictures(Dataset):
    "What torchvision's tutorial gives its loop: a picture, boxes, labels and masks, mirrored at random"
    tfms = v2.Compose([v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])
    def __init__(self, anns, vocab): self.anns,self.o2i = anns,{o: i+1 for i,o in enumerate(vocab)}
    def __len__(self): return len(self.anns)
    def __getitem__(self, i):
        a = self.anns[i]
        w,h = a.size
        masks = np.stack([decode_mask(m, a.size) for m in a.masks]) if a.masks else np.zeros((0, h, w), bool)
        return self.tfms(tv.Image(pil_to_tensor(read_image(a.path))), dict(
            boxes=tv.BoundingBoxes(torch.from_numpy(a.bboxes), format='XYXY', canvas_size=(h, w)),
            labels=torch.tensor([self.o2i[o] for o in a.labels], dtype=torch.int64),
            masks=tv.Mask(torch.from_numpy(masks).to(torch.uint8))))

def schedule(opt, args, steps):
    "The tutorial's warm-up over the first epoch, then a cosine, or its tenth of the rate after every third epoch"
    warm = torch.optim.lr_scheduler.LinearLR(opt, 1e-3, total_iters=max(steps-1, 1))
    if args.schedule == 'step': then = torch.optim.lr_scheduler.StepLR(opt, 3*steps, .1)
    else: then = torch.optim.lr_scheduler.CosineAnnealingLR(opt, args.epochs*steps)
    return torch.optim.lr_scheduler.ChainedScheduler([warm, then])

def stock(anns, vocab, args, weights):
    net = detector(args, weights, vocab).net.to(args.device)
    train,valid = ([a for a in anns if a.split == o] for o in ('train', 'valid'))
    dl  = DataLoader(Pictures(train, vocab), args.bs, shuffle=True, drop_last=True, collate_fn=pairs,
                     num_workers=args.workers)
    if args.stock_opt == 'adam': opt = torch.optim.Adam(net.parameters(), args.stock_lr)
    else: opt = torch.optim.SGD(net.parameters(), args.stock_lr, momentum=.9, weight_decay=5e-4)
    sched = schedule(opt, args, len(dl))
    t = clock(args.device)
    net.train()
    for _ in range(args.epochs):
        for x,y in dl:
            x,y = [o.to(args.device) for o in x],[{k: v.to(args.device) for k,v in o.items()} for o in y]
            loss = sum(net(x, y).values())
            # as torchvision's engine: a net of nan finds nothing, and would pass for a weak one
            if not loss.isfinite(): sys.exit(f"the stock loop's loss is {loss.item()}: lower --stock-lr")
            opt.zero_grad(); loss.backward(); opt.step(); sched.step()
    secs,said = clock(args.device)-t,[]
    net.eval()
    with torch.no_grad():
        for a in valid:
            o, = net([(pil_to_tensor(read_image(a.path))/255.).to(args.device)])
            o = {k: v.cpu() for k,v in o.items()}
            masks = paste_masks_in_image(o['masks'], o['boxes'], a.size[::-1])[:,0] > .5   # ours leaves that to others
            said.append(Annotation(a.path, a.size, [vocab[i-1] for i in o['labels'].tolist()], o['boxes'].numpy(),
                                   masks=[encode_rle(m.numpy()) for m in masks], scores=o['scores'].numpy()))
    return said,secs

def score(valid, said, vocab):
    boxes,masks = (coco_ap(valid, said, vocab, iou_type=o) for o in ('bbox', 'segm'))
    return {f'{what} {name}': d[k] for what,d in (('box', boxes), ('mask', masks))
            for name,k in dict(AP='map', AP50='map50', AP75='map75').items()}

SYSTEMS = dict(ours=('ours', ours), stock=("torchvision's recipe", stock))

def run(anns, vocab, args, weights):
    "One row a seed and system"
    valid,rows = [a for a in anns if a.split == 'valid'],[]
    for seed in args.seeds:
        for o in args.systems[::1 if seed%2 == 0 else -1]:     # neither is always the first
            name,f = SYSTEMS[o]
            set_seed(seed)
            said,secs = f(anns, vocab, args, weights)
            rows.append(dict(system=name, **score(valid, said, vocab), seconds=secs))
            print(seed, *(f'{v:.4f}' if isinstance(v, float) else v for v in rows[-1].values()), sep=' | ', flush=True)
    return pd.DataFrame(rows)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--data', nargs='+', choices=DATA, default=list(DATA))
    ap.add_argument('--systems', nargs='+', choices=SYSTEMS, default=list(SYSTEMS))
    ap.add_argument('--arch', default='mask_rcnn',
                    help="or torchvision's: maskrcnn_resnet50_fpn starts, as in the tutorial, from COCO's weights")
    ap.add_argument('--encoder', default='mobilenet_v2', help='of mask_rcnn')
    ap.add_argument('--width', type=float, default=.25, help='of mask_rcnn: 1 is for a GPU')
    ap.add_argument('--classes', nargs='+', help='these alone; all else, and pictures without them, are background')
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    ap.add_argument('--size', type=int, default=192, help='pixels of the longer side')
    ap.add_argument('--bs', type=int, default=4)
    ap.add_argument('--epochs', type=int, default=8, help='of either')
    ap.add_argument('--freeze', type=int, default=0, help='so many of ours with a frozen encoder, as `fine_tune` has 1')
    ap.add_argument('--lr', type=float, default=1e-3, help='of ours')
    ap.add_argument('--stock-lr', type=float, default=1e-3, help='of the stock loop')
    ap.add_argument('--stock-opt', choices=['sgd', 'adam'], default='adam',
                    help="the tutorial's is SGD of .005, which begins from COCO's weights")
    ap.add_argument('--schedule', choices=['cosine', 'step'], default='cosine', help='of the stock loop')
    ap.add_argument('--limit', type=int, help='so many pictures to train on')
    ap.add_argument('--workers', type=int, default=0)
    ap.add_argument('--device', default='cpu')
    ap.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = ap.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(args.threads)
    data,weights = folder('VISION_TASKS_DATA'),folder('VISION_TASKS_WEIGHTS')/WEIGHTS
    print(describe(('torch', 'torchvision', 'fastai')), f'{args.threads} torch thread(s)', args.device, sep=', ',
          flush=True)
    for name in args.data:
        anns = [clip_objects(a) for a in DATA[name](data)]
        if args.classes: anns = [only(a, args.classes) for a in anns]
        train,valid = ([a for a in anns if a.split == o] for o in ('train', 'valid'))
        train = train[:args.limit]
        df = run(train + valid, vocab_of(anns), args, weights)
        cols = list(df.columns[1:])
        n_objects = [sum(len(a.labels) for a in o) for o in (train, valid)]
        print(f"\n**{name}**: {len(train)} + {len(valid)} pictures, {n_objects[0]} + {n_objects[1]} objects, "
              f"{len(vocab_of(anns))} classes; {args.arch}, {args.size} px, bs {args.bs}, {args.epochs} epochs, seeds "
              f"{args.seeds}; mean ± sd\n\n| system | {' | '.join(cols)} |\n|---|" + '---:|'*len(cols))
        for o,d in df.groupby('system', sort=False):
            print(f'| {o} |', *(f"{spread(d[c], 3) if c != 'seconds' else f'{d[c].mean():.0f}'} |" for c in cols))
        print(flush=True)

if __name__ == '__main__': main()
