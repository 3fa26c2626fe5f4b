"Shared by all benchmarks: a line that describes the machine, and fair, interleaved timing of all contestants"
import os, platform, statistics, time, warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ['WEIGHTS', 'begin', 'describe', 'interleaved']

# encoder -> its file in VISION_TASKS_WEIGHTS
WEIGHTS = dict(mobilenet_v2='mobilenet_v2_imagenet_features_tv.pth',
               tf_efficientnet_lite0='tf_efficientnet_lite0_timm.pth',
               shufflenet_v2_x0_5='shufflenet_v2_x0_5_stages_tv_imagenetnorm.pth')

def _cpu():
    "The model of the processor, as the system calls it"
    info = Path('/proc/cpuinfo')
    names = ([o.split(':', 1)[1].strip() for o in info.read_text().splitlines() if o.startswith('model name')]
             if info.exists() else [])
    return names[0] if names else platform.processor() or platform.machine()

def _version(package):
    try: return version(package)
    except PackageNotFoundError: return 'absent'

def describe(packages=('numpy', 'scikit-learn')) -> str:
    "One line: processor, cores that this process may use, threads of OpenMP, versions of Python and of `packages`"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return ', '.join([f"{_cpu()}, {cores} cores", f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}",
                      f"Python {platform.python_version()}", *(f"{o} {_version(o)}" for o in packages)])

def begin(
    ap,              # ArgumentParser
    packages=('torch', 'torchvision', 'fastai'),
):                   # its arguments, with `threads`
    "What a benchmark that trains does first: parse, be quiet, take so many threads, print a line on the machine"
    import torch
    ap.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = ap.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(args.threads)
    device = [args.device] if 'device' in args else []
    print(describe(packages), f'{args.threads} torch thread(s)', *device, sep=', ', flush=True)
    return args

def interleaved(
    fns:dict,        # name -> function without arguments
    n:int=5,         # rounds; in each, every function runs once, so that a slow spell of the machine meets all of them
) -> dict:           # name -> median seconds
    "Time the functions in turn"
    times = {o: [] for o in fns}
    for _ in range(n):
        for name,f in fns.items():
            t = time.perf_counter()
            f()
            times[name].append(time.perf_counter()-t)
    return {o: statistics.median(t) for o,t in times.items()}
