"""Detection of face masks: `detection_learner` beside a plain loop with torchvision's own recipe for SSDlite (its
crops, SGD with momentum, a cosine), the same net, encoder weights, images, epochs, batch size; one scorer for both"""
import argparse, sys
from pathlib import Path
import pandas as pd, torch
from fastai.vision.all import set_seed
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors as tv
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from keypoint_real import spread
from machine import WEIGHTS, begin
from multilabel_real import facemask_xml, folder
from segmentation_real import NoValid, clock
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.targets import clip_objects
from vision_tasks.data.image import read_image
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.models.registry import get_arch

def named(args, weights, archs=('ssdlite', 'faster_rcnn', 'retinanet', 'fcos')):
    "The encoder and its weights, for `archs` that take one"
    return dict(encoder=args.encoder, pretrained=weights) if args.arch in archs else dict(pretrained=False)

def detector(args, weights, vocab):
    "The net of the stock loop, which resizes images itself"
    size = {} if args.arch == 'fcos' else dict(size=args.size)
    if 'ssd' not in args.arch: size |= dict(min_size=args.size, max_size=args.size)
    return get_arch(args.arch, 'detection')(len(vocab), resize=True, **size, **named(args, weights))

# --- the two systems: train on `anns`, predict their validation images; -> annotations, seconds of training

def ours(anns, vocab, args, weights):
    dls = detection_dls(anns, vocab, bs=args.bs, size=args.size, num_workers=args.workers, device=args.device)
    learn = detection_learner(dls, args.arch, metrics=[], **named(args, weights))
    return fit_and_predict(learn, anns, args)

def fit_and_predict(learn, anns, args):
    "README's call, with the recipe of the architecture unless the arguments say otherwise"
    t,frozen = clock(args.device),learn.recipe.freeze_epochs if args.freeze is None else args.freeze
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(NoValid()):
        learn.fine_tune(args.epochs - frozen, args.lr, freeze_epochs=frozen)
    secs = clock(args.device)-t
    with learn.no_bar(): return learn.annotate([a for a in anns if a.split == 'valid'], thresh=0.),secs

class Images(Dataset):
    "The data set of torchvision's reference: a uint8 image, boxes and labels, cropped and flipped"
    tfms = v2.Compose([v2.RandomIoUCrop(), v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes(),
                       v2.ToDtype(torch.float32, scale=True)])
    def __init__(self, anns, vocab): self.anns,self.o2i = anns,{o: i+1 for i,o in enumerate(vocab)}
    def __len__(self): return len(self.anns)
    def __getitem__(self, i):
        a = self.anns[i]
        return self.tfms(tv.Image(pil_to_tensor(read_image(a.path))), self.target(a))
    def target(self, a):
        return dict(boxes=tv.BoundingBoxes(torch.tensor(a.bboxes), format='XYXY', canvas_size=a.size[::-1]),
                    labels=torch.tensor([self.o2i[o] for o in a.labels], dtype=torch.int64))

def pairs(batch): return tuple(zip(*batch))

def stock(anns, vocab, args, weights):
    net = detector(args, weights, vocab).net.to(args.device)
    dl  = loader(Images([a for a in anns if a.split == 'train'], vocab), args)
    opt = torch.optim.SGD(net.parameters(), args.stock_lr, momentum=.9, weight_decay=4e-5)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, args.epochs*len(dl))
    secs = train(net, dl, opt, sched, args)
    return predictions(net, anns, vocab, args.device),secs

def loader(dataset, args):
    return DataLoader(dataset, args.bs, shuffle=True, drop_last=True, collate_fn=pairs, num_workers=args.workers)

def train(net, dl, opt, sched, args):
    "torchvision's loop; -> seconds"
    t = clock(args.device)
    net.train()
    for _ in range(args.epochs):
        for x,y in dl:
            x,y = [o.to(args.device) for o in x],[{k: v.to(args.device) for k,v in o.items()} for o in y]
            loss = sum(net(x, y).values())
            # as torchvision's engine: a net of nan predicts nothing, and would look like a weak one
            if not loss.isfinite(): sys.exit(f"the stock loop's loss is {loss.item()}: lower --stock-lr")
            opt.zero_grad(); loss.backward(); opt.step(); sched.step()
    return clock(args.device)-t

@torch.no_grad()
def predictions(net, anns, vocab, device, masks_of=lambda o, size: None):
    "Predictions of torchvision's `net` for the validation images of `anns`; `masks_of`: output, (w, h) -> masks"
    net.eval()
    preds = []
    for a in anns:
        if a.split != 'valid': continue
        o, = net([(pil_to_tensor(read_image(a.path))/255.).to(device)])
        o = {k: v.cpu() for k,v in o.items()}
        preds.append(Annotation(a.path, a.size, [vocab[i-1] for i in o['labels'].tolist()], o['boxes'].numpy(),
                               masks=masks_of(o, a.size), scores=o['scores'].numpy()))
    return preds

# --- the table

def run(systems, score, anns, vocab, args, weights):
    "One row per seed and system: `systems` by name, `score` of targets, predictions, vocab"
    valid,rows = [a for a in anns if a.split == 'valid'],[]
    for seed in args.seeds:
        for name,f in list(systems.items())[::1 if seed%2 == 0 else -1]:     # neither is always the first
            set_seed(seed)
            preds,secs = f(anns, vocab, args, weights)
            rows.append(dict(system=name, **score(valid, preds, vocab), seconds=secs))
            print(seed, *(f'{v:.4f}' if isinstance(v, float) else v for v in rows[-1].values()), sep=' | ', flush=True)
    return pd.DataFrame(rows)

def table(df):
    "A line a system: mean ± standard deviation over the seeds"
    cols = list(df.columns[1:])
    print(f"| system | {' | '.join(cols)} |\n|---|" + '---:|'*len(cols))
    for name,d in df.groupby('system', sort=False):
        print(f'| {name} |', *(f"{spread(d[c], 3) if c != 'seconds' else f'{d[c].mean():.0f}'} |" for c in cols))

def score(valid, preds, vocab):
    per,total = coco_ap(valid, preds, vocab, per_class=True).set_index('label'),coco_ap(valid, preds, vocab)
    return dict(AP=total['map'], AP50=total['map50'], **{f'AP50 {o}': per.ap50[o] for o in vocab})

SYSTEMS = {'ours': ours, "torchvision's recipe": stock}

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--arch', default='ssdlite')
    ap.add_argument('--encoder', default='mobilenet_v2', help='of ssdlite, faster_rcnn, retinanet, fcos')
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    ap.add_argument('--size', type=int, default=320)
    ap.add_argument('--bs', type=int, default=8)
    ap.add_argument('--epochs', type=int, default=5, help='of either, frozen ones included')
    ap.add_argument('--freeze', type=int, help="so many of ours with a frozen encoder, in place of the recipe's")
    ap.add_argument('--lr', type=float, help="of ours, in place of the recipe's")
    ap.add_argument('--systems', nargs='+', choices=SYSTEMS, default=list(SYSTEMS))
    ap.add_argument('--stock-lr', type=float, default=.0125, help="of SGD: torchvision's .15 for 192 images per step")
    ap.add_argument('--limit', type=int, help='number of training images')
    ap.add_argument('--workers', type=int, default=0)
    ap.add_argument('--device', default='cpu')
    args = begin(ap)
    anns = [clip_objects(a) for a in facemask_xml(folder('VISION_TASKS_DATA'))]
    weights = folder('VISION_TASKS_WEIGHTS')/WEIGHTS['mobilenet_v2']
    if args.limit: anns = [a for a in anns if a.split == 'train'][:args.limit] + [a for a in anns if a.split == 'valid']
    vocab,n = vocab_of(anns),sum(a.split == 'train' for a in anns)
    df = run({o: SYSTEMS[o] for o in args.systems}, score, anns, vocab, args, weights)
    print(f"\n**facemask**: {n} + {len(anns)-n} images; {args.arch} on {args.encoder}, {args.size} px, bs {args.bs}, "
          f"{args.epochs} epochs, seeds {args.seeds}; mean ± sd\n")
    table(df)

if __name__ == '__main__': main()
