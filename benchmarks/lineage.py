"""From the sliding window to SSD: the same images, encoder and seconds of training; AP50, passes of the encoder and
seconds per image, beside the papers' figures. `--speed`: R-CNN against Fast R-CNN on 2000 given proposals. `--targets`:
the share of matching, targets and NMS in a training step. Face masks where VISION_TASKS_DATA is set; ImageNet's weights
of mobilenet_v2 where VISION_TASKS_WEIGHTS is"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # before numpy is there
import argparse, statistics, sys, tempfile, time, warnings
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch
warnings.filterwarnings('ignore', '.torch.jit.script. is deprecated')
import numpy as np, torch, torchvision
from fastai.vision.all import set_seed
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, SSDMatcher
from torchvision.ops import box_iou
from machine import WEIGHTS, describe
from multilabel_real import facemask_xml, folder
from segmentation_real import NoValid, clock
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.targets import clip_objects
from vision_tasks.data.image import read_image
from vision_tasks.data.proposals import Proposals
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.models.detection.base import Detector
from vision_tasks.models.detection.fast_rcnn import FastRCNN
from vision_tasks.models.detection.rcnn import RCNN
from vision_tasks.models.detection.sliding_window import SlidingWindowDetector
from vision_tasks.models.detection.torchvision_parts import RPN
from vision_tasks.models.registry import get_arch
from vision_tasks.ops.proposals import proposal_recall

@dataclass
class Net:
    paper:str                          # mean AP of VOC 2007's test set, with the data it was trained on
    speed:str                          # as the paper tells it, with its GPU
    lr:float = 5e-3                    # None: `fine_tune` by the recipe of the architecture
    kw:dict = field(default_factory=dict)
    given:bool = False                 # whether it needs proposals

# 07, 12: trained on VOC 2007, 2012. From the papers named in the modules; DPM's from R-CNN's
NETS = dict(
    sliding_window    = Net('DPM v5: 33.7 (07)', '-', kw=dict(window=32)),
    rcnn              = Net('58.5 AlexNet, 66.0 VGG16 (07)', '13 s (AlexNet), 47 s (VGG16, K40)',
                            kw=dict(crop=32, context=4), given=True),
    fast_rcnn         = Net('66.9 (07), 70.0 (07+12)', '.32 s without proposals (K40)', kw=dict(stride=8, ps=.1),
                            given=True),
    faster_rcnn_vgg16 = Net('69.9 (07), 73.2 (07+12)', '.2 s (K40)', kw=dict(stride=8, ps=.1)),
    yolo_v1           = Net('63.4 (07+12)', '.022 s (Titan X)', None, dict(width=1/4)),
    ssdlite           = Net('SSD300: 68.0 (07), 74.3 or 77.2 (07+12)', '.022 s (Titan X)', 1e-2))

# --- data: name -> annotations with their splits

def drawn(args, tmp): return draw_shapes(tmp, n=args.n, size=args.size)

def facemask(args, tmp):
    "The first of each side of the experiment's split, in the order of their names"
    anns = [clip_objects(a) for a in facemask_xml(folder('VISION_TASKS_DATA'))]
    train,valid = ([a for a in anns if a.split == o] for o in ('train', 'valid'))
    return train[:args.n - args.n//5] + valid[:args.n//5]

DATA = dict(drawn=(drawn, 96), facemask=(facemask, 192))   # and pixels of the net's input; multiples of 32, for YOLO

# --- train

def learner(name, dls, args):
    set_seed(args.seed)
    kw = dict(NETS[name].kw)
    if name == 'yolo_v1': kw['S'] = args.size//32
    learn = detection_learner(dls, name, encoder=args.encoder, pretrained=args.weights, arch_kwargs=kw, metrics=[])
    learn.model.to(args.device)
    learn.unfreeze()
    return learn

def step(model, batch):
    "Forward and backward"
    x,*proposals,bboxes,labels = batch
    sum(model(x, bboxes, labels, proposals=proposals[0] if proposals else None).values()).backward()

def epochs_in(learn, seconds, device):
    "How many epochs last about so long, by three batches; the learner is spent"
    learn.model.train()
    for i,batch in enumerate(learn.dls.train):
        if i == 1: t = clock(device)               # the first is slower
        if i == 4: break
        step(learn.model, batch)
        learn.model.zero_grad()
    return max(1, round(seconds/((clock(device) - t)/max(i - 1, 1)*len(learn.dls.train))))

def train(name, dls, args):
    "The learner, its epochs, and the seconds that they and the later stages took"
    epochs = args.epochs or epochs_in(learner(name, dls, args), args.seconds, args.device)
    learn,lr = learner(name, dls, args),NETS[name].lr
    t = clock(args.device)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(NoValid()):
        if lr is None: learn.fine_tune(epochs)
        else: learn.fit_one_cycle(epochs, slice(lr/learn.recipe.lr_mult, lr) if args.weights else lr)
    return learn,epochs,clock(args.device) - t

# --- the cost of a prediction

@contextmanager
def counting(encoder):
    "Counts the images or windows in each call of `encoder`"
    seen = []
    hook = encoder.register_forward_pre_hook(lambda m,xs: seen.append(len(xs[0])))
    try: yield seen
    finally: hook.remove()

@torch.no_grad()
def cost(learn, device):
    "Passes of the encoder, and seconds, per image, given its proposals"
    model,dl = learn.model.eval(),learn.dls.valid.new(bs=1)
    batches  = [(x, proposals[0] if proposals else None) for x,*proposals,_,_ in dl]
    model(batches[0][0], proposals=batches[0][1])               # warms up
    with counting(model.encoder) as seen:
        t = clock(device)
        for x,p in batches: model(x, proposals=p)
        secs = clock(device) - t
    return sum(seen)/len(batches),secs/len(batches)

def search_seconds(anns, n):
    "Seconds of selective search per image"
    p,t = Proposals('selective_search', n=n),time.process_time()
    for a in anns: p.method(np.asarray(read_image(a.path)), n=n)
    return (time.process_time() - t)/len(anns)

def windows_overlap(model, anns, size):
    "Mean over the objects of the best IoU with a window, in images of `size`"
    grid = torch.cat([model.grid(l, (size, size)) for l in model.levels((size, size))]).numpy()
    # images are padded to the net's size, so objects are compared at that scale
    return proposal_recall([grid]*len(anns), [a.bboxes*size/max(a.size) for a in anns])['mean_best_overlap']

def compare(data, args, tmp):
    read,size = DATA[data]
    args = argparse.Namespace(**{**vars(args), 'size': args.size or size})
    anns = read(args, tmp)
    props = Proposals('selective_search', n=args.proposals, cache=Path(tmp)/'proposals', workers=0)
    common = dict(size=args.size, bs=args.bs, num_workers=0, device=args.device, path=tmp)
    dls = {o: detection_dls(anns, proposals=props if o else None, **common) for o in (False, True)}
    valid = dls[False].valid.items
    search,found = search_seconds(valid, args.proposals),[props(a) for a in valid]
    recall,boxes = proposal_recall(found, [a.bboxes for a in valid]),np.mean([len(o) for o in found])
    budget = f"{args.epochs} epochs" if args.epochs else f"{args.seconds:g} s of training, as whole epochs"
    print(f"\n**{data}**: {len(dls[False].train.items)} + {len(valid)} images, {args.size} px, bs {args.bs}; "
          f"{args.encoder} {'ImageNet weights' if args.weights else 'random weights'}, for each net {budget} (R-CNN's "
          f"SVMs come on top), seed {args.seed}. Selective search: {boxes:.0f} boxes per image, recall "
          f"{recall['recall50']:.2f} at IoU .5, {recall['recall70']:.2f} at .7, {search:.3f} s\n\n"
          "| net | AP50 | AP | passes per image | s, proposals given | s with them | epochs | training, s | paper: "
          "mAP, VOC 2007 | paper: per image |\n|---|" + '---:|'*7 + '---|---|')
    overlap = None
    for name in args.nets:
        net = NETS[name]
        learn,epochs,took = train(name, dls[net.given], args)
        with learn.no_bar(): scores = learn.evaluate()
        passes,secs = cost(learn, args.device)
        if name == 'sliding_window': overlap = windows_overlap(learn.model, valid, args.size)
        print(f"| {name} | {scores['map50']:.3f} | {scores['map']:.3f} | {passes:.0f} | {secs:.4f} | "
              f"{secs + search*net.given:.4f} | {epochs} | {took:.0f} | {net.paper} | {net.speed} |", flush=True)
    overlap = f'{overlap:.2f}' if overlap else 'not measured here'
    print('\n' + WHY.format(recall=recall['recall50'], boxes=boxes, overlap=overlap))

WHY = """Why it is not what the papers report:
- The papers' AP50 is that of 20 classes in photographs, learned from 5 to 16 thousand of them, for hours on a GPU.
- Seconds are equal, epochs are not: a step of the sliding window or of R-CNN classifies many windows.
- Selective search finds {recall:.0%} of these objects with {boxes:.0f} boxes. Nets with proposals start there; Faster
  R-CNN has to learn to propose in the same seconds, and SSD and YOLO to do everything in one pass.
- The sliding window has no regression of boxes. The best window's IoU with an object is {overlap} on average; windows
  from .5 on were all positive in training, so the one with the highest score need not be the best.
- R-CNN's crops have 32 pixels here, not 224 or 227: its passes are many, but small. `--speed` has the paper's size.
- YOLO's layers behind the encoder start from random weights, and each cell learns from the objects in it alone; the
  paper trains them for 135 epochs on 16 551 images.
- SSD is SSDlite on the same encoder, not the paper's VGG16.
- Seconds are those of one core; the papers' are those of a GPU, on which large parallel operations are nearly free."""

# --- R-CNN against Fast R-CNN

def random_boxes(n, size, gen):
    "(1, n, 4) pixels, from 16 pixels to half of the image wide and high"
    wh = 16 + torch.rand(n, 2, generator=gen)*(size/2 - 16)
    xy = torch.rand(n, 2, generator=gen)*(size - wh)
    return torch.cat([xy, xy + wh], 1)[None]

@torch.no_grad()
def speed(args):
    gen  = torch.Generator().manual_seed(args.seed)
    size = args.speed_size
    x,p  = torch.randn(1, 3, size, size, generator=gen),random_boxes(2000, size, gen)
    nets = {'fast_rcnn': get_arch('fast_rcnn', 'detection')(20, encoder=args.encoder)}
    for c in args.crops: nets[f'rcnn, crops of {c}'] = get_arch('rcnn', 'detection')(20, encoder=args.encoder, crop=c)
    print(f"\n**2000 proposals, given**: one image of {size} px, {args.encoder}, 20 classes, one thread; seconds of "
          "process time\n\n| net | passes | s per image | to Fast R-CNN |\n|---|---:|---:|---:|")
    for name,net in nets.items():
        net.eval()
        many,times = name == 'fast_rcnn',[]
        with counting(net.encoder) as seen:
            for _ in range(6 if many else 1):
                t = time.process_time()
                net(x, proposals=p)
                times.append(time.process_time() - t)
        secs = statistics.median(times[many:])                     # without the one that warms up
        if many: fast = secs
        print(f"| {name} | {sum(seen)//len(times)} | {secs:.3f} | {secs/fast:.1f} |", flush=True)

# --- matching, targets, NMS

def places(name):
    "(class or module, attribute) of all that a training step does between the net's layers"
    rcnn,fast,theirs,yolo = (sys.modules[f'vision_tasks.models.detection.{o}']
                             for o in ('rcnn', 'fast_rcnn', 'torchvision_parts', 'yolo'))
    return [(Detector, 'make_targets')] + dict(
        sliding_window    = [(SlidingWindowDetector, o) for o in ('grid', 'sample_windows')],
        rcnn              = [(RCNN, 'label_regions'), (rcnn, 'check_proposals'), (rcnn, 'pick_windows')],
        fast_rcnn         = [(FastRCNN, 'sample_regions'), (fast, 'check_proposals'), (fast, 'encode_bboxes')],
        faster_rcnn_vgg16 = [(RPN, 'assign_targets_to_anchors'), (RPN, 'filter_proposals'),
                             (BalancedPositiveNegativeSampler, '__call__'), (BoxCoder, 'encode'),
                             (theirs._RoIHeads, 'select_training_samples')],
        # with the losses themselves, which are not apart from the targets
        yolo_v1           = [(yolo, 'yolo_loss')],
        ssdlite           = [(SSDMatcher, '__call__'), (torchvision.models.detection.ssd.box_ops, 'box_iou'),
                             (theirs._SSD, 'compute_loss')])[name]

@contextmanager
def stopwatch(spots):
    "The seconds in all `spots`, each counted once where one calls another, and the calls"
    got,inside = dict(secs=0., calls=0),[False]
    def watched(f):
        def wrapper(*args, **kwargs):
            if inside[0]: return f(*args, **kwargs)
            inside[0],t = True,time.process_time()
            try: return f(*args, **kwargs)
            finally:
                inside[0] = False
                got['secs'] += time.process_time() - t
                got['calls'] += 1
        return wrapper
    with ExitStack() as stack:
        for owner,k in spots: stack.enter_context(patch.object(owner, k, watched(getattr(owner, k))))
        yield got

def targets(args):
    size,bs,n,rounds = 320,2,100,8
    gen = torch.Generator().manual_seed(args.seed)
    x,labels = torch.randn(bs, 3, size, size, generator=gen),torch.randint(1, 21, (bs, n), generator=gen)
    bboxes,proposals = (torch.cat([random_boxes(o, size, gen) for _ in range(bs)]) for o in (n, 2000))
    print(f"\n**{n} objects per image**: {bs} images of {size} px, {args.encoder}, 20 classes, 2000 proposals where "
          f"they are given; maps of stride {args.stride} for Fast and Faster R-CNN; median of {rounds} training steps "
          "with Adam, one thread, process time\n\n"
          "| net | step, ms | matching, targets, NMS, ms | share |\n|---|---:|---:|---:|")
    # Faster R-CNN also with torchvision's own IoU, in the same run
    for name,own in [(o, own) for o in args.nets for own in (True, False)[:1 + (o == 'faster_rcnn_vgg16')]]:
        set_seed(args.seed)
        net = NETS[name]
        kw  = {**net.kw, **({'S': size//32} if name == 'yolo_v1' else {}), **({} if net.given else {'size': size})}
        if 'stride' in kw: kw['stride'] = args.stride               # 8 is for small images
        model = get_arch(name, 'detection')(20, encoder=args.encoder, **kw).train()
        opt,rows = torch.optim.Adam(model.parameters()),[]
        for _ in range(rounds + 1):
            with stopwatch(places(name)) as got, nullcontext() if own else patch.object(
                    RPN, 'box_similarity', staticmethod(box_iou)):
                t = time.process_time()
                step(model, (x, *([proposals] if net.given else []), bboxes, labels))
                opt.step(); opt.zero_grad()
                rows.append((time.process_time() - t, got['secs']))
            assert got['calls'] > 1, f"{name}: what should be timed is not called"
        whole,part = np.median(rows[1:], 0)
        what = name if own else f"{name}, torchvision's `box_iou`"
        print(f"| {what} | {1e3*whole:.0f} | {1e3*part:.1f} | {part/whole:.1%} |", flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--data', nargs='+', choices=list(DATA),
                    default=['drawn'] + ['facemask']*('VISION_TASKS_DATA' in os.environ))
    ap.add_argument('--n', type=int, default=100, help='images, a fifth of them for validation')
    ap.add_argument('--size', type=int, help=f'pixels, in place of { {k: s for k,(_,s) in DATA.items()} }')
    ap.add_argument('--bs', type=int, default=8)
    ap.add_argument('--encoder', default='mobilenet_v2')
    ap.add_argument('--nets', nargs='+', choices=list(NETS), default=list(NETS))
    ap.add_argument('--seconds', type=float, default=40., help='of training, for each net')
    ap.add_argument('--epochs', type=int, help='of each net, in place of --seconds')
    ap.add_argument('--proposals', type=int, default=200, help='per image, at most')
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--device', default='cpu')
    ap.add_argument('--speed', action='store_true', help='R-CNN against Fast R-CNN instead')
    ap.add_argument('--speed-size', type=int, default=512, help='pixels of its image')
    ap.add_argument('--crops', nargs='+', type=int, default=[64, 112, 224], help="pixels of R-CNN's windows there")
    ap.add_argument('--stride', type=int, default=16, help='of the map of Fast and Faster R-CNN, with --targets')
    ap.add_argument('--targets', action='store_true', help='the share of matching, targets and NMS instead')
    args = ap.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    args.weights = (folder('VISION_TASKS_WEIGHTS')/WEIGHTS['mobilenet_v2']
                    if args.encoder == 'mobilenet_v2' and 'VISION_TASKS_WEIGHTS' in os.environ else False)
    print(describe(('torch', 'torchvision', 'fastai')), 'one torch thread', args.device, sep=', ', flush=True)
    if args.speed: speed(args)
    if args.targets: targets(args)
    if args.speed or args.targets: return
    for data in args.data:
        with tempfile.TemporaryDirectory() as tmp: compare(data, args, tmp)

if __name__ == '__main__': main()
