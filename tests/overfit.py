"The training loop of tests in which a small net learns a few images by heart"
import torch
from torch import nn

def overfit(
    net:nn.Module,
    loss_of:callable,    # () -> loss of a step, of a net in training mode
    steps:int,
    lr:float,            # for the first 7 tenths of the steps; then it falls to 0
    clip:float=None,     # highest norm of the gradient
):
    """Adam. At a constant rate the loss of a small net has spikes, and whether training ends on one depends on how the
    processor rounds; at a rate of 0 it ends on none"""
    opt  = torch.optim.Adam(net.parameters(), lr)
    plan = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min(1., (1 - i/steps)/.3))
    for _ in range(steps):
        loss = loss_of()
        opt.zero_grad(); loss.backward()
        if clip: nn.utils.clip_grad_norm_(net.parameters(), clip)
        opt.step(); plan.step()
