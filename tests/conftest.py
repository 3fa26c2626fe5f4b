import os
os.environ.setdefault('OMP_NUM_THREADS', '1')   # two threads that wait for each other cost small nets dearly
import matplotlib
matplotlib.use('Agg')
import pytest
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
