"Functions of tensors and arrays that torchvision.ops does not have"
