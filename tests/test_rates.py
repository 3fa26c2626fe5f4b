"Suggested learning rates"
import numpy as np, pytest, torch
from fastai.callback.all import steep
from vision_tasks.training.rates import steepest

def curve(n=100, at=-2.5, noise=0., seed=0):
    "A loss that falls around 10**`at` and rises after 10**0"
    x = np.linspace(-6, 1, n)
    y = 1/(1 + np.exp((x-at)*4)) + np.maximum(0, x)**2 + np.random.default_rng(seed).normal(0, noise, n)
    return torch.tensor(10**x, dtype=torch.float),torch.tensor(y, dtype=torch.float)

@pytest.mark.parametrize('n', [25, 60, 100])
def test_it_is_where_the_loss_falls_fastest(n):
    rate,point = steepest(*curve(n), n)
    assert abs(np.log10(rate) + 2.5) < .3 and point[0] == rate and point[1] == pytest.approx(.5, abs=.25)

def test_noise_misleads_it_less_than_the_slope_from_step_to_step():
    off = {f: [abs(np.log10(f(*curve(100, noise=.03, seed=i), 100)[0]) + 2.5) for i in range(20)]
           for f in (steepest, steep)}
    assert np.mean(off[steepest]) < .5 < np.mean(off[steep])

def test_it_stays_before_the_minimum_and_takes_two_points():
    lrs,losses = torch.tensor([1e-3, 1e-2, 1e-1]),torch.tensor([1., .5, 2.])
    assert steepest(lrs, losses, 3)[0] <= 1e-2 + 1e-6
    assert steepest(lrs[:2], losses[:2], 2)[0] <= 1e-2 + 1e-6
    assert steepest(lrs, torch.tensor([1., 2., 3.]), 3)[0] == pytest.approx(1e-3)
