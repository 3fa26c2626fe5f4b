import os
os.environ.setdefault('OMP_NUM_THREADS', '1')   # two threads that wait for each other cost small nets dearly
import gc, random
import matplotlib
matplotlib.use('Agg')
import numpy as np, pytest, torch

def pytest_configure(config):
    "Slow tests and those of a GPU run only where `-m` names them: with `-m 'not train'` they do not"
    expr = config.option.markexpr
    if 'slow' not in expr and 'cuda' not in expr:
        config.option.markexpr = ' and '.join([*([f'({expr})'] if expr else []), 'not slow', 'not cuda'])

def pytest_collection_finish():
    "What the imports made stays, so that no later garbage collection looks through it"
    gc.collect()
    gc.freeze()

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    "Each test and its fixtures begin with the same random numbers, whatever ran before in the same process"
    for seed in (random.seed, np.random.seed, torch.manual_seed): seed(0)

@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt
    plt.close('all')

@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    "32 drawn pictures with all kinds of labels, some without objects"
    from vision_tasks.data.synthetic import draw_shapes
    return draw_shapes(tmp_path_factory.mktemp('shapes'), n=32, size=64)
