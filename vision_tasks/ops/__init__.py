"Tensors or arrays in, tensors or arrays out: only what torchvision.ops lacks"
