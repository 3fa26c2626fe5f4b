"""Detectors on any encoder at equal seconds of training: a grid of rates for each architecture, through the learner and
`fine_tune` with its recipe (`--lrs`: other rates in its place), on face masks, nuts, pedestrians and drawn shapes; AP
in pixels of the files. `--regions` compares two-stage nets with torchvision's numbers of regions in the same run;
`--steps` prints seconds of a training step alone"""
import argparse, json, random, sys, tempfile
from dataclasses import dataclass, replace
from pathlib import Path
import pandas as pd
import torch
from fastai.vision.all import set_seed
from instance_real import pennfudan
from keypoint_real import spread
from machine import WEIGHTS, begin
from multilabel_real import facemask_xml, folder
from readme_figure import HELD_OUT
from segmentation_real import NoValid, clock
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.formats.coco import read_coco
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.data.targets import clip_objects
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.instance import instance_dls, instance_learner
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.models.detection.regions import COCO
from vision_tasks.models.registry import arch_facts, get_arch, list_archs

# --- data: name -> annotations with their splits

def facemask(tmp): return facemask_xml(folder('VISION_TASKS_DATA'))

def nuts(tmp):
    path = folder('VISION_TASKS_DATA')/'nuts'
    return [replace(a, split='valid' if a.path.name in HELD_OUT else 'train')
            for a in read_coco(path/'trainval.json', path/'images')]

def shapes(tmp):
    "Up to eight small shapes in each image"
    return [replace(a, split='valid' if i%3 == 0 else 'train') for i,a in enumerate(draw_shapes(tmp, 300, 160, most=8))]

def few(anns, n):
    "`n` random training images, and half as many others, the same in each run; all where there are no more"
    r = random.Random(0)
    parts = [[a for a in anns if a.split == o] for o in ('train', 'valid')]
    return [a for part,m in zip(parts, (n, n//2)) for a in (r.sample(part, m) if len(part) > m else part)]

@dataclass
class Data:
    read:callable
    size:int    # pixels of the net's input
    bs:int
    n:int       # training images

DATA = dict(facemask=Data(facemask, 224, 8, 160), nuts=Data(nuts, 224, 2, 14), shapes=Data(shapes, 96, 8, 160),
            pennfudan=Data(lambda tmp: pennfudan(folder('VISION_TASKS_DATA')), 160, 4, 80))

# --- one run

def is_instance(arch): return arch in list_archs('instance')

def learner(arch, lr, kw, anns, d, args, seed):
    set_seed(seed)
    make_dls,make = (instance_dls, instance_learner) if is_instance(arch) else (detection_dls, detection_learner)
    dls = make_dls(anns, bs=d.bs, size=args.size or d.size, num_workers=0, device=args.device)
    named = dict(encoder=args.encoder, pretrained=folder('VISION_TASKS_WEIGHTS')/WEIGHTS[args.encoder])
    learn = make(dls, arch, metrics=[], arch_kwargs={**kw, **args.kw}, **named)
    learn.recipe = learn.recipe.replace(base_lr=lr, **args.recipe)
    return learn

def epochs_in(learn, seconds, device):
    "How many epochs last about so long, by whole steps of up to three batches; the learner is spent"
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(NoValid()):
        learn.model.train()
        learn.create_opt()
        for i,batch in enumerate(learn.dls.train):
            if i == 1: t = clock(device)               # the first is slower
            if i == 4: break
            learn.xb,learn.yb = batch[:learn.dls.n_inp],batch[learn.dls.n_inp:]
            sum(learn.model(*learn.xb, *learn.yb).values()).backward()
            learn.opt.step()
            learn.opt.zero_grad()
    return max(2, round(seconds/((clock(device) - t)/max(i - 1, 1)*len(learn.dls.train))))

def run(arch, lr, kw, anns, d, args, seed, epochs):
    learn = learner(arch, lr, kw, anns, d, args, seed)
    t,frozen = clock(args.device),learn.recipe.freeze_epochs
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(NoValid()): learn.fine_tune(epochs - frozen)
    secs = clock(args.device) - t
    valid = [a for a in anns if a.split == 'valid']
    with learn.no_bar(): preds = learn.annotate(valid, thresh=0.)
    kinds = dict(box='bbox', mask='segm') if is_instance(arch) else dict(box='bbox')
    ap = {f'{k} ': coco_ap(valid, preds, learn.dls.vocab[1:], o) for k,o in kinds.items()}
    return {f'{k}{name}': v[o] for k,v in ap.items() for name,o in dict(AP='map', AP50='map50').items()} | dict(
        rate=learn.recipe.base_lr, epochs=epochs, seconds=secs, step=secs/(epochs*len(learn.dls.train)))

def runs(name, arms, args, tmp):
    "A row for each arm and seed"
    d = DATA[name]
    anns = few([clip_objects(a) for a in d.read(tmp/name)], args.limit or d.n)
    epochs = {}
    for seed in args.seeds:
        for arch,what,kw,lr in arms:
            if (arch, what) not in epochs:
                epochs[arch, what] = args.epochs or epochs_in(learner(arch, lr, kw, anns, d, args, 0), args.seconds,
                                                              args.device)
            row = dict(data=name, arch=arch, regions=what, seed=seed,
                       **run(arch, lr, kw, anns, d, args, seed, epochs[arch, what]))
            print(*(f'{v:.4f}' if isinstance(v, float) else v for v in row.values()), sep=' | ', flush=True)
            yield row

# --- seconds of a step

STEPS = [('faster_rcnn', COCO), ('faster_rcnn', {}), ('faster_rcnn', dict(width=.5)), ('fcos', {}), ('retinanet', {}),
         ('ssdlite', {})]

def step_seconds(arch, kw, size, args, n=3):
    "The fastest of `n` steps on 4 random images with 6 objects each: forward, backward, Adam; after one that warms up"
    set_seed(0)
    kw  = {**kw, **({} if arch == 'fcos' else dict(size=size))}
    weights = folder('VISION_TASKS_WEIGHTS')/WEIGHTS[args.encoder]
    net = get_arch(arch, 'detection')(3, encoder=args.encoder, pretrained=weights, **kw)
    net.train().to(args.device)
    opt,secs = torch.optim.Adam(net.parameters(), 1e-5),[]
    x,corners,labels = torch.rand(4, 3, size, size),torch.rand(4, 6, 2, 2)*size,torch.randint(1, 4, (4, 6))
    batch = [o.to(args.device) for o in (x, corners.sort(2).values.flatten(2), labels)]
    for _ in range(n + 1):
        t = clock(args.device)
        sum(net(*batch).values()).backward()
        opt.step()
        opt.zero_grad()
        secs.append(clock(args.device) - t)
    return min(secs[1:])

def steps(args):
    print('| arch | arguments | 128 px | 224 px |\n|---|---|---:|---:|')
    for arch,kw in STEPS:
        secs = [step_seconds(arch, kw, size, args) for size in (128, 224)]
        what = ', '.join(f'{k}={v}' for k,v in kw.items())
        print(f"| {arch} | {what} | {' | '.join(f'{s:.2f} s' for s in secs)} |", flush=True)

# --- the tables

def arms_of(args):
    "(architecture, whose numbers of regions, keyword arguments, rate) of each contestant"
    for arch in args.archs:
        two_stage = arch in ('faster_rcnn', 'mask_rcnn')
        kinds = {"by size": {}, "torchvision's": COCO} if args.regions and two_stage else {"by size": {}}
        for what,kw in kinds.items():
            for lr in args.lrs or [None]: yield arch,what if two_stage else '-',kw,lr

def table(df, score):
    "A line for each architecture and rate; the recipe's rate is marked"
    print(f"\n{score}, mean ± sd\n\n| arch | regions | rate | {' | '.join(df.data.unique())} "
          "| epochs | seconds | seconds per step |")
    print('|---|---|---:|' + '---:|'*(df.data.nunique()+3))
    for (arch,regions,rate),d in df.groupby(['arch', 'regions', 'rate'], sort=False):
        task = 'instance' if is_instance(arch) else 'detection'
        own = ' (recipe)' if rate == arch_facts(arch, task).get('recipe', {}).get('base_lr') else ''
        by = {o: d[d.data == o] for o in df.data.unique()}
        cells = [spread(o[score], 3) if len(o) > 1 else f'{o[score].mean():.3f}' for o in by.values()]
        print(f"| {arch} | {regions} | {rate:g}{own} | {' | '.join(cells)} |",
              ', '.join(f'{o.epochs.iloc[0]}' for o in by.values()), '|',
              ', '.join(f'{o.seconds.mean():.0f}' for o in by.values()), '|',
              ', '.join(f'{o.step.mean():.2f}' for o in by.values()), '|')

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--archs', nargs='+', default=['ssdlite', 'faster_rcnn', 'retinanet', 'fcos'])
    ap.add_argument('--data', nargs='+', choices=DATA, default=['facemask', 'nuts', 'shapes'])
    ap.add_argument('--lrs', nargs='+', type=float, help="rates in place of the recipe's")
    ap.add_argument('--regions', action='store_true', help="two-stage nets with torchvision's numbers of regions too")
    ap.add_argument('--recipe', type=json.loads, default={}, help='JSON: other values of the recipe')
    ap.add_argument('--kw', type=json.loads, default={}, help='JSON: further arguments of the builder')
    ap.add_argument('--encoder', choices=WEIGHTS, default='mobilenet_v2')
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    ap.add_argument('--seconds', type=float, default=40, help='of training, in whole epochs')
    ap.add_argument('--epochs', type=int, help='in place of seconds, frozen ones included')
    ap.add_argument('--size', type=int, help="pixels of the net's input in place of the set's own")
    ap.add_argument('--limit', type=int, help="training images in place of the set's own number")
    ap.add_argument('--device', default='cpu')
    ap.add_argument('--steps', action='store_true')
    args = begin(ap)
    if args.steps: return steps(args)
    with tempfile.TemporaryDirectory() as tmp:
        df = pd.DataFrame([row for name in args.data for row in runs(name, [*arms_of(args)], args, Path(tmp))])
    budget = f'{args.epochs} epochs' if args.epochs else f'about {args.seconds:g} seconds'
    print(f"\n{args.encoder}; {budget} each; seeds {args.seeds}; {args.recipe or ''} {args.kw or ''}")
    for score in [o for o in df.columns if o.endswith(' AP50') or o.endswith(' AP')]: table(df, score)

if __name__ == '__main__': main()
