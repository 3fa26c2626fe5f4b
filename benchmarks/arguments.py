"""The argument matrix: how many calls with invalid values raise our own errors

    python benchmarks/arguments.py [data] [ops] [models] [tasks]

Every argument of every public function is called with the values of tests/bad_arguments.py. To count another version
of the package, put it first on PYTHONPATH"""
import contextlib, io, os, sys, tempfile, warnings
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]/'tests'))
os.environ.setdefault('MPLBACKEND', 'Agg')
import matplotlib.pyplot as plt
from bad_arguments import BAD, FEW, count
from vision_tasks.data.synthetic import draw_shapes

def data(folder):
    import test_arguments_data as t
    w = t.make_world(folder)
    for calls in t.CALLS: yield calls(w),BAD,t.ACCEPTS

def ops(folder):
    import test_arguments_ops as t
    yield t.calls(folder),BAD,t.ACCEPTS

def models(folder):
    import test_arguments_models as t
    import timm.models._builder, torchvision.models._api
    def refuse(*args, **kwargs): raise OSError("no network")
    timm.models._builder.load_state_dict_from_hf = torchvision.models._api.load_state_dict_from_url = refuse
    yield t.CALLS,FEW,t.ACCEPTS

def tasks(folder):
    import test_arguments_tasks as t
    shapes = draw_shapes(folder/'shapes', 32, 64)
    for task in t.TASKS:
        anns = task.anns(shapes)[:12]
        yield t.dls_calls(task, anns, folder),BAD,t.ACCEPTS
        yield t.learner_calls(task, anns, folder),FEW,t.ACCEPTS

AREAS = dict(data=data, ops=ops, models=models, tasks=tasks)

def main(*names):
    warnings.simplefilter('ignore')
    print(f"{'area':<10}{'calls':>8}{'own error or accepted':>24}{'foreign message':>18}{'wrongly taken':>16}")
    for name in names or AREAS:
        total = [0]*3
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            os.chdir(folder)   # 'nonsense' may be a path that is written
            for calls,values,accepts in AREAS[name](Path(folder)):
                total = [a + b for a,b in zip(total, count(calls, values, accepts))]
                plt.close('all')
            os.chdir('/')
        n,foreign,taken = total
        print(f'{name:<10}{n:>8}{n - foreign - taken:>24}{foreign:>18}{taken:>16}', flush=True)

if __name__ == '__main__': main(*sys.argv[1:])
