"From files to tensors and back: the core type, one reader and writer a format, blocks and joint transforms"
