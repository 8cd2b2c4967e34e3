"""How images are normalised: (p - mean) / std, per colour, of pixels p in 0..1."""

# Of R, G, B over ImageNet: what networks here take unless they are told otherwise.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
