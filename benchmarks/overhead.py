"The overhead of a Learner: the unfrozen epochs of `fine_tune`, without validation, against a bare PyTorch loop"
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import argparse, copy, statistics, sys, time, warnings
from pathlib import Path
import torch
from fastai.callback.core import CancelValidException
from fastai.vision.all import Adam, Callback, DataLoaders, OptimWrapper, get_image_files, set_seed
from torch import Tensor, nn
from loading import CAMVID, camvid
from machine import describe, interleaved
from multilabel_real import facemask_xml
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.image import image_size
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.segmentation import segmentation_dls, segmentation_learner

BS,LR,VOCAB = 16,1e-4,[f'class {i}' for i in range(20)]
ADAMW = dict(betas=(.95, .99), eps=1e-5, weight_decay=.01)   # as fastai's Adam has them

def adamw(params, lr):   return torch.optim.AdamW(params, lr=lr, **ADAMW)
def wrapped(params, lr): return OptimWrapper(params, opt=torch.optim.AdamW, lr=lr, **ADAMW)

class Memory(list):
    "Batches that are there already, as a DataLoader"
    n_inp = 1
    def to(self, device): return self

class NoValid(Callback):
    "Training alone"
    def before_validate(self): raise CancelValidException

class Task:
    bs,tiny = BS,True          # whether `Tiny` can stand for the net
    @classmethod
    def loss(cls, model, x, *y): return cls.loss_func(model(x), *y)

class Multilabel(Task):
    learner,net,what = staticmethod(multilabel_learner),dict(arch='mobilenet_v2'),'mobilenet_v2, 224 px'
    loss_func = nn.BCEWithLogitsLoss()
    @staticmethod
    def dls(data, n, **kwargs):
        files = get_image_files(data/'coco128/images').sorted()[:n]
        anns  = [Annotation(f, image_size(f), [VOCAB[i%len(VOCAB)]]) for i,f in enumerate(files)]
        return multilabel_dls(anns, VOCAB, size=224, **kwargs)

class Segmentation(Task):
    learner,net = staticmethod(segmentation_learner),dict(arch='lraspp', encoder='mobilenet_v2')
    what,loss_func = 'lraspp on mobilenet_v2, 240x180 px',nn.CrossEntropyLoss(ignore_index=255)
    @staticmethod
    def dls(data, n, **kwargs):
        return segmentation_dls(camvid(data, 'train', 'train')[:n], CAMVID, size=(240, 180), **kwargs)

class Detection(Task):
    learner,net,bs,tiny = staticmethod(detection_learner),dict(arch='ssdlite', encoder='mobilenet_v2'),8,False
    what = 'ssdlite on mobilenet_v2, 224 px'
    @staticmethod
    def dls(data, n, **kwargs): return detection_dls(facemask_xml(data)[:n], size=224, **kwargs)
    @staticmethod
    def loss(model, x, bboxes, labels):
        "torchvision's net as its reference trains it"
        return sum(model.net(list(x), [dict(boxes=b[l > 0], labels=l[l > 0]) for b,l in zip(bboxes, labels)]).values())

TASKS = dict(multilabel=Multilabel, segmentation=Segmentation, detection=Detection)

class Bare:
    "The loop that one would write: every parameter and BatchNorm is trained, the loss is read at every step"
    def __init__(self, task, model, batches, opt, epochs):
        self.loss,self.model = task.loss,copy.deepcopy(model)
        self.batches,self.opt,self.epochs = batches,opt,epochs
    def __call__(self):
        model,total = self.model.train(),0.
        opt = self.opt(list(model.parameters()), lr=LR)
        for _ in range(self.epochs):
            for b in self.batches:
                loss = self.loss(model, *(o.as_subclass(Tensor) for o in b))
                loss.backward()
                opt.step()
                opt.zero_grad()
                total += loss.item()

class Ours:
    "What `fine_tune` does once the encoder is unfrozen"
    def __init__(self, task, model, dls, batches, opt, epochs):
        self.learn = task.learner(dls, copy.deepcopy(model), pretrained=False, metrics=[], cbs=NoValid())
        self.opt,self.epochs = opt,epochs
        self.learn.dls = DataLoaders(batches, dls.valid, device=dls.device)
    def __call__(self):
        learn = self.learn
        learn.opt_func,learn.opt = self.opt,None
        with learn.no_bar(), learn.no_logging():
            learn.unfreeze()
            learn.fit_one_cycle(self.epochs, slice(LR/100, LR), div=5.)

class Timed:
    "Keeps the seconds of each call, (of this process, wall)"
    def __init__(self, f): self.f,self.secs = f,[]
    def __call__(self):
        t,c = time.perf_counter(),time.process_time()
        self.f()
        self.secs.append((time.process_time()-c, time.perf_counter()-t))

class Tiny(nn.Module):
    "A net whose cost is negligible, so that the loop is measured"
    def __init__(self, n_out, size):
        super().__init__()
        self.encoder,self.head,self.size = nn.Conv2d(3, n_out, 1),nn.Identity(),size   # size: None, or (h, w) of a map
    def forward(self, x):
        x = self.head(self.encoder(x[...,:1,:1]))
        return x.flatten(1) if self.size is None else x.expand(-1, -1, *self.size)

def parts(task, dls, model, batches, rounds):
    "What whole runs are too noisy to show: the optimisers alone on the net's parameters, the loops alone on `Tiny`"
    model = copy.deepcopy(model)
    for p in model.parameters(): p.grad = torch.randn_like(p)*1e-3
    ps,many,steps = list(model.parameters()),Memory(batches*(100//len(batches))),20
    opts = {'AdamW': adamw(ps, LR), "fastai's Adam": Adam(ps, lr=LR)}
    step = lambda o: Timed(lambda: [o.step() for _ in range(steps)])
    fns  = {f'{k}, {len(ps)} tensors, a step': (step(o), steps) for k,o in opts.items()}
    y = batches[0][1]
    if task.tiny:
        tiny = Tiny(len(dls.vocab), None if y.ndim == 2 else y.shape[-2:]).to(dls.device)
        fns |= {'bare loop on a tiny net, a step': (Timed(Bare(task, tiny, many, adamw, 1)), len(many)),
                'Learner on a tiny net, a step':   (Timed(Ours(task, tiny, dls, many, wrapped, 1)), len(many))}
    interleaved({k: f for k,(f,_) in fns.items()}, rounds)
    print('\n| part | ms, process time: median (min..max) |\n|---|---:|')
    for k,(f,n) in fns.items():
        ms = [s[0]/n*1000 for s in f.secs]
        print(f'| {k} | {statistics.median(ms):.2f} ({min(ms):.2f}..{max(ms):.2f}) |')

def all_train(anns): return list(range(len(anns))),[0]

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--task',    choices=TASKS, default='multilabel')
    ap.add_argument('--rounds',  type=int, default=5)
    ap.add_argument('--batches', type=int, default=8, help='in an epoch')
    ap.add_argument('--epochs',  type=int, default=2)
    ap.add_argument('--threads', type=int, default=1)
    ap.add_argument('--device',  default='cpu')
    args = ap.parse_args()
    if not os.environ.get('VISION_TASKS_DATA'):
        sys.exit("VISION_TASKS_DATA is not set: it is the folder of data sets, with coco128, camvid and facemask in it")
    warnings.filterwarnings('ignore')
    torch.set_num_threads(args.threads)
    set_seed(0)
    task  = TASKS[args.task]
    dls   = task.dls(Path(os.environ['VISION_TASKS_DATA']), task.bs*args.batches, bs=task.bs, splitter=all_train,
                     num_workers=0, device=args.device)
    model = task.learner(dls, **task.net, pretrained=False).model.to(args.device)
    memory = Memory(dls.train)                   # normalized, on the device
    n  = args.epochs*args.batches
    assert len(memory) == args.batches
    fns = {(where, what): Timed(f) for where,b in (('in memory', memory), ('loaded', dls.train)) for what,f in (
        ('bare loop, AdamW', Bare(task, model, b, adamw, args.epochs)),
        ("bare loop, fastai's Adam", Bare(task, model, b, Adam, args.epochs)),
        ('Learner, AdamW in OptimWrapper', Ours(task, model, dls, b, wrapped, args.epochs)),
        ("Learner, fastai's Adam (default)", Ours(task, model, dls, b, Adam, args.epochs)))}
    for k,f in fns.items(): f.f.epochs = 1; f.f(); f.f.epochs = args.epochs   # warms up
    interleaved(fns, args.rounds)
    print(describe(('torch', 'torchvision', 'fastai')),
          f"\n\n{task.what}, bs {task.bs}, {n} steps a run on {args.device}, {args.threads} thread(s); "
          f"mean ± sd (min..max) of {args.rounds} runs, interleaved; "
           "overhead over the bare loop with AdamW, mean (range)\n")
    print('| batches | training | ms a step, process time | overhead | ms a step, wall | overhead |\n'
          '|---|---|---:|---:|---:|---:|')
    for (where,what),f in fns.items():
        cells = []
        for i in (0, 1):
            ms   = [s[i]/n*1000 for s in f.secs]
            over = [100*(s[i]/b[i]-1) for s,b in zip(f.secs, fns[where, 'bare loop, AdamW'].secs)]
            sd   = statistics.stdev(ms) if len(ms) > 1 else 0.
            cells += [f'{statistics.mean(ms):.1f} ± {sd:.1f} ({min(ms):.1f}..{max(ms):.1f})',
                      f'{statistics.mean(over):+.1f} % ({min(over):+.1f}..{max(over):+.1f})']
        print(f'| {where} | {what} |', ' | '.join(cells), '|')
    parts(task, dls, model, memory, args.rounds)

if __name__ == '__main__': main()
