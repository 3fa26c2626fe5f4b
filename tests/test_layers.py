"Parts that several nets share"
import pytest, torch
from vision_tasks.models.layers import GridHead

@pytest.mark.parametrize('hw', [(2, 2), (7, 7), (1, 5), (13, 9)])
def test_a_grid_head_takes_every_size_and_every_parameter_has_a_gradient(hw):
    torch.manual_seed(0)
    head = GridHead(8, 6, grid=3, width=4, hidden=16)
    out = head(torch.randn(4, 8, *hw))
    assert out.shape == (4, 6)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())

def test_it_tells_places_apart_which_a_pooled_map_cannot():
    "One bright cell, anywhere: its place can be learned, while the mean and the maximum of the map are always the same"
    torch.manual_seed(0)
    head,at = GridHead(1, 2, grid=4, width=8, hidden=32, ps=0.),torch.cartesian_prod(torch.arange(8), torch.arange(8))
    x = torch.zeros(64, 1, 8, 8)
    x[torch.arange(64), 0, at[:,0], at[:,1]] = 1.
    y,opt = at/3.5 - 1,torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(150):
        loss = (head(x) - y).abs().mean()
        opt.zero_grad(); loss.backward(); opt.step()
    assert loss < .5*(y - y.mean(0)).abs().mean()
