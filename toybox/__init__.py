"""A world of known objects: it makes the training data of the bundled priors, and grades what comes out."""
