"Losses, one file per kind of target"
