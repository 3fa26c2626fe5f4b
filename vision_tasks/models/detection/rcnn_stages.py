"R-CNN's stages after the network: the hardest windows, linear SVMs, ridge regression"
from __future__ import annotations
import torch
from torch import Tensor
from sklearn.svm import LinearSVC

__all__ = ['ridge_regression']

class HardestRows:
    "The `n` rows with the highest keys of all that were added; up to twice as many are in memory"
    def __init__(self, n): self.n,self.parts = n,[]

    def add(self, keys, *rows):
        if len(keys): self.parts.append([keys, *rows])
        if sum(len(p[0]) for p in self.parts) > 2*self.n: self.cut()

    def cut(self):
        rows = [torch.cat(o) for o in zip(*self.parts)]
        keep = rows[0].topk(min(self.n, len(rows[0]))).indices
        self.parts = [[o[keep] for o in rows]]

    def get(self) -> list[Tensor]:
        if not self.parts: return []
        self.cut()
        return self.parts[0][1:]

def linear_svm(pos:Tensor, neg:Tensor, C:float) -> tuple[Tensor,Tensor]: # (n, d), (m, d) -> (d,), ()
    "Weights and bias of the SVM, fitted by liblinear as in the released code"
    svm = LinearSVC(C=C, loss='hinge', intercept_scaling=10, class_weight={1: 2}, max_iter=10_000, random_state=0)
    svm.fit(torch.cat([pos, neg]).numpy(), [1]*len(pos) + [0]*len(neg))
    return torch.from_numpy(svm.coef_[0]).float(),torch.tensor(svm.intercept_[0], dtype=torch.float)

def ridge_regression(
    x:Tensor,          # (n, d) features
    y:Tensor,          # (n, k) targets
    ridge:float=1000., # penalty on the squares of the weights, above 0; the intercept has none
) -> tuple[Tensor,Tensor]: # (k, d) weights and (k,) intercepts, float32
    "Ridge regression in closed form"
    x,y = x.double(),y.double()
    mx,my = x.mean(0),y.mean(0)
    x = x - mx
    # (x'x + ridge)^-1 x' = x' (xx' + ridge)^-1; most nets have more features than there are rows, or about as many
    w = torch.linalg.solve(x@x.T + ridge*torch.eye(len(x), dtype=x.dtype), y - my).T@x
    return w.float(),(my - w@mx).float()
