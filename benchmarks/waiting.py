"""What `OMP_WAIT_POLICY=PASSIVE` costs where nothing else runs, and saves beside a busy process

A small net is trained with two threads in processes of their own, in turn with each policy: alone, and beside a process
that keeps one core busy. The other processes of the machine count too, so run it on an idle one"""
import argparse, os, statistics, subprocess, sys, time
from contextlib import contextmanager
from machine import describe

POLICIES = {'unset (threads spin)': None, 'PASSIVE (threads sleep)': 'PASSIVE'}

def train(steps, bs):
    "Seconds of `steps` training steps of a small net, after three that warm up"
    import torch
    from torch import nn
    from torchvision.models import shufflenet_v2_x0_5
    torch.manual_seed(0)
    net,x,y = shufflenet_v2_x0_5(num_classes=5),torch.randn(bs, 3, 64, 64),torch.randint(5, (bs,))
    opt = torch.optim.SGD(net.parameters(), 1e-3)
    def step():
        opt.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        opt.step()
    for _ in range(3): step()
    start = time.perf_counter()
    for _ in range(steps): step()
    print(time.perf_counter() - start)

@contextmanager
def busy(on):
    "A process that keeps a core busy, if `on`"
    p = subprocess.Popen([sys.executable, '-c', 'while True: pass']) if on else None
    try: yield
    finally:
        if p is not None:
            p.kill()
            p.wait()

def measure(policy, args):
    env = {k: v for k,v in os.environ.items() if k not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}
    env |= {'OMP_NUM_THREADS': '2'} | ({} if policy is None else {'OMP_WAIT_POLICY': policy})
    cmd = [sys.executable, __file__, '--child', '--steps', str(args.steps), '--bs', str(args.bs)]
    return float(subprocess.run(cmd, env=env, check=True, capture_output=True, text=True).stdout)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--steps', type=int, default=30)
    ap.add_argument('--bs', type=int, default=16)
    ap.add_argument('--rounds', type=int, default=5)
    ap.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.child: return train(args.steps, args.bs)
    print(describe(('torch', 'torchvision')), f"\n\nshufflenet_v2_x0_5, {args.steps} steps, 2 threads, load of the "
          f"machine at the start {os.getloadavg()[0]:.1f}; seconds, median (min..max) of {args.rounds} processes\n\n"
          f"| | {' | '.join(POLICIES)} |\n|---|---:|---:|", flush=True)
    for where in (False, True):
        times = {o: [] for o in POLICIES}
        with busy(where):
            for _ in range(args.rounds):
                for o,p in POLICIES.items(): times[o].append(measure(p, args))
        cells = [f'{statistics.median(t):.2f} ({min(t):.2f}..{max(t):.2f})' for t in times.values()]
        print(f"| {'beside a busy process' if where else 'alone'} | {' | '.join(cells)} |", flush=True)

if __name__ == '__main__': main()
