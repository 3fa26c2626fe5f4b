"""What `torch.set_flush_denormal(True)` costs a normal training step, and saves one whose numbers are denormal (below
1.2e-38 in float32), where a CPU computes many times slower

A small net, without BatchNorm, is trained at rate 0, so that all steps are alike, in processes of their own: with
normal numbers, and with its input, weights, gradients or the averages of Adam driven into the denormal range. A second
part trains Faster R-CNN with and without a warm-up, and counts the seconds of each step. Process time of all threads"""
import argparse, math, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from machine import describe

STATES = ['normal', 'input', 'weights', 'gradients', "Adam's averages"]
FLUSH  = ['no', 'before the threads start', 'after']

def child_step(args):
    "Seconds of each of `args.steps` steps, median"
    import torch
    from fastai.optimizer import Adam
    from torch import nn
    torch.manual_seed(0)
    if args.flush == 'before the threads start': torch.set_flush_denormal(True)
    convs = [o for i in (3, 64, 64) for o in (nn.Conv2d(i, 64, 3, padding=1), nn.ReLU())]
    last = nn.Linear(64*64, 1024),nn.ReLU(),nn.Linear(1024, 5)
    net = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(8), nn.Flatten(), *last)
    x,y = torch.randn(8, 3, 48, 48),torch.randint(5, (8,))
    opt,scale = Adam(list(net.parameters()), lr=0., sqr_mom=.99),1.
    def step():
        (nn.functional.cross_entropy(net(x), y)*scale).backward()
        opt.step()
        opt.zero_grad()
    step()   # the averages are there, and the threads
    if args.flush == 'after': torch.set_flush_denormal(True)
    with torch.no_grad():
        if args.state == 'input': x.mul_(1e-39)
        if args.state == 'weights':
            for p in net.parameters(): p.mul_(1e-39)
        if args.state == 'gradients': scale = 1e-37
        if args.state == "Adam's averages":
            scale = 0.
            for s in opt.state.values(): s['grad_avg'].fill_(1e-39); s['sqr_avg'].fill_(1e-39)
    times = []
    for _ in range(args.steps):
        start = time.process_time(); step(); times.append(time.process_time() - start)
    print(statistics.median(times))

def child_detector(args):
    "The loss and the seconds of each of `args.steps` steps of Faster R-CNN"
    import torch
    from fastai.vision.all import Callback, set_seed
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from vision_tasks.data.synthetic import draw_shapes
    from vision_tasks.detection import detection_dls, detection_learner
    if args.flush != 'no': torch.set_flush_denormal(True)
    class Steps(Callback):
        n,run_valid = 0,False
        def before_batch(self): self.start = time.process_time()
        def after_batch(self):
            self.n += 1
            print(f'{self.loss.item():.6g} {time.process_time() - self.start:.3f}', flush=True)
            if self.n == args.steps: os._exit(0)
    with tempfile.TemporaryDirectory() as tmp:
        set_seed(0)
        dls = detection_dls(draw_shapes(tmp, 80, 128, seed=0), size=128, bs=4, num_workers=0)
        learn = detection_learner(dls, 'faster_rcnn', encoder='mobilenet_v2', pretrained=weights_of(args), metrics=[])
        with learn.no_bar(), learn.no_logging():
            if args.lr[0]: learn.fit(100, args.lr[0], cbs=Steps())
            else: learn.fine_tune(math.ceil(args.steps/len(dls.train)), freeze_epochs=0, cbs=Steps())

def weights_of(args): return Path(args.weights) if args.weights else False

# --- processes

def child(args, **kw):
    cmd = [sys.executable, __file__, '--steps', str(kw.pop('steps'))]
    for k,v in kw.items(): cmd += [f'--{k}', str(v)]
    env = os.environ | {'OMP_NUM_THREADS': str(args.threads)}
    return subprocess.run(cmd, env=env, check=True, capture_output=True, text=True).stdout

def table(args):
    print(f"| ms per step, flushed: | {' | '.join(FLUSH)} |\n|---|" + '---:|'*len(FLUSH), flush=True)
    for state in STATES:
        times = {o: [] for o in FLUSH}
        for _ in range(args.rounds):
            for o in FLUSH:
                times[o].append(float(child(args, child='step', state=state, flush=o, steps=args.steps))*1e3)
        cells = [f'{statistics.median(t):.1f} ({min(t):.1f}..{max(t):.1f})' for t in times.values()]
        print(f"| {state} | {' | '.join(cells)} |", flush=True)

def detector(args, lr):
    more = dict(weights=args.weights) if args.weights else {}
    def run(flush):
        out = child(args, child='detector', flush=flush, lr=lr, steps=args.detector_steps, **more)
        return [l.split() for l in out.splitlines()]
    print(f"\nFaster R-CNN, {f'rate {lr:g}, no warm-up' if lr else 'fine_tune with its recipe'}\n\n"
          "| step | loss | seconds | loss, flushed | seconds, flushed |\n|---:|---:|---:|---:|---:|")
    for i,(a,b) in enumerate(zip(run('no'), run(FLUSH[1]))): print(f"| {i+1} | {' | '.join([*a, *b])} |", flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--steps', type=int, default=10)
    ap.add_argument('--rounds', type=int, default=3, help='processes of each kind')
    ap.add_argument('--threads', type=int, default=1)
    ap.add_argument('--detector-steps', type=int, default=0, help='of the detector; 0: only the small net')
    ap.add_argument('--lr', type=float, nargs='+', default=[1e-3, 0],
                    help='of the detector, constant; 0: `fine_tune` with its recipe')
    ap.add_argument('--weights', help="file of mobilenet_v2's weights, for the detector; random by default")
    for o in ('child', 'state', 'flush'): ap.add_argument(f'--{o}', help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.child: return dict(step=child_step, detector=child_detector)[args.child](args)
    print(describe(('torch', 'torchvision')), f"\n\n{args.threads} thread(s), {args.rounds} processes of {args.steps} "
          "steps each; median (min..max) of the processes' medians\n", flush=True)
    table(args)
    for lr in args.lr if args.detector_steps else []: detector(args, lr)

if __name__ == '__main__': main()
