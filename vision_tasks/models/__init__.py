"Plain `nn.Module`s: encoders, the registry of architectures and the architectures themselves"
