"""How generated images are judged: on features, in fp64, with the uncertainty of finite samples."""
